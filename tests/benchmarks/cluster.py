"""Images certified per second: two workers of a Ray cluster against two processes that know nothing of each other.

Both certify the same MNIST images into stores, with LeNet on one thread each; the clock starts when all are under way.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from certify import Gaussian, Smoothing
from certify.campaign import run
from certify.campaign.executor import Executor, Results, Serial, Work
from certify.campaign.ray_executor import RayWorkers
from paper_repro.data import mnist
from paper_repro.models import lenet

METHOD = Smoothing(Gaussian(0.5), n=1000)
IMAGES, BATCH, WORKERS, ROUNDS = 240, 4, 2, 3
UNDER_WAY = 3
"""Batches of each process before the clock starts: the first ones wait for what is loaded and allocated."""


Arrival = tuple[float, float]
"""When a batch was done, and the seconds that its worker had it."""


class Clocked:
    """An executor that notes when each result came."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.arrivals = executor, list[Arrival]()

    @contextmanager
    def __call__(self, work: Work) -> Iterator[Results]:
        with self.executor(work) as inner:

            def results(items: Iterable[Any]) -> Iterator[tuple[int, Any, float]]:
                for number, result, seconds in inner(items):
                    self.arrivals.append((time.monotonic(), seconds))  # one clock for all processes of a machine
                    yield number, result, seconds

            yield results


def arrivals(indices: str, executor: Executor) -> list[Arrival]:
    """When each batch of a campaign was done."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clocked = Clocked(executor)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "s.sqlite"
        names = ("lenet", "mnist test")
        run(store, METHOD, lenet().eval(), mnist("test"), names=names, indices=indices, batch=BATCH, executor=clocked)
    return clocked.arrivals


def rate(campaigns: list[list[Arrival]]) -> tuple[float, float]:
    """Images per second, and the share of time that workers work, while all are under way and have work left."""
    each = WORKERS // len(campaigns)
    start, end = max(c[each * UNDER_WAY][0] for c in campaigns), min(c[-each][0] for c in campaigns)
    done = sum(start < t <= end for c in campaigns for t, _ in c)
    busy = sum(max(0.0, min(t, end) - max(t - seconds, start)) for c in campaigns for t, seconds in c)
    return BATCH * done / (end - start), busy / (end - start) / WORKERS


def main() -> None:
    torch.set_num_threads(1)
    apart, together = [], []
    context = multiprocessing.get_context("spawn")
    for _ in range(ROUNDS):
        parts = [f"{k}:{IMAGES}:{WORKERS}" for k in range(WORKERS)]
        with context.Pool(WORKERS) as pool:
            apart.append(rate(pool.map(partial(arrivals, executor=Serial()), parts, 1)))
        started = time.monotonic()
        times = arrivals(f"0:{IMAGES}", RayWorkers(WORKERS))
        together.append(rate([times]))
        for name, (images, busy) in {"processes apart": apart[-1], "workers of Ray": together[-1]}.items():
            print(f"{WORKERS} {name}: {images:.1f} images/s, at work {busy:.1%} of the time", flush=True)
        print(f"the first batch of Ray's workers is done after {times[0][0] - started:.0f} s", flush=True)
    ratio = median(images for images, _ in together) / median(images for images, _ in apart)
    print(
        f"Ray / apart, medians of {ROUNDS} turns: {ratio:.2f}; {METHOD.n0 + METHOD.n} votes per image, {BATCH} a batch"
    )


if __name__ == "__main__":
    main()
