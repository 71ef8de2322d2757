"""Workers of a Ray cluster, one process each. The one module that imports ray, from the extra [cluster]."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch

from certify.campaign.executor import Results, Work, timed
from certify.errors import InputError

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise InputError("need ray, as installed by pip install 'robust-radius[cluster]', for the executor ray") from error

TRIES = 3
"""How often an item is handed out before its loss is an error: what kills every worker that meets it will not stop."""


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """Hand out items, one at a time, to processes of a Ray cluster that each hold the work.

    A worker computes with as many threads as this process, for on their number the last bits of a sum depend, and takes
    as many CPUs of the cluster; where the work is on a GPU it takes one GPU and one CPU. A worker that dies is
    replaced, and its item handed out again.

    Args:
        workers: How many; None for as many as the cluster has room for.
        address: Of a running cluster; None for the one that this process has joined, or else for one on this machine
            that ends with the block. Where nothing answers, Ray ends the process after some minutes.

    Raises:
        InputError: workers < 1.
    """

    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"need workers >= 1; got {self.workers}")

    @contextmanager
    def __call__(self, work: Work) -> Iterator[Results]:
        """See `Executor`.

        Raises:
            InputError: the cluster has no room for so many workers, or a worker is not like this process.
            ChildProcessError: an item was lost TRIES times, each time with its worker.
        """
        threads, on_gpu = torch.get_num_threads(), work.device.type != "cpu"
        needs: dict[str, Any] = {"num_gpus": 1, "num_cpus": 1} if on_gpu else {"num_cpus": threads}
        with self._cluster(None if on_gpu or self.workers is None else self.workers * threads):
            count = self._count(*("GPU", 1) if on_gpu else ("CPU", threads))
            shared = ray.put(work)
            made: Any = ray.remote(max_restarts=-1, max_task_retries=TRIES - 1, **needs)(_Worker)
            workers = [made.remote(threads, conditions(work.device)) for _ in range(count)]
            try:
                yield partial(_results, workers, shared)
            finally:
                for worker in workers:
                    ray.kill(worker)

    @contextmanager
    def _cluster(self, cpus: int | None) -> Iterator[None]:
        if ray.is_initialized() and self.address is None:
            yield
            return
        here = {"num_cpus": cpus, "include_dashboard": False} if self.address is None else {}
        ray.init(self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
        try:
            yield
        finally:
            ray.shutdown()

    def _count(self, resource: str, each: int) -> int:
        room = int(ray.cluster_resources().get(resource, 0)) // each
        count = room if self.workers is None else self.workers
        if not 1 <= count <= room:
            raise InputError(
                f"need room for {max(count, 1)} workers with {each} {resource} each; the cluster has room for {room}"
            )
        return count


class _Worker:
    """A process of the cluster. It is made again where it died, by Ray."""

    def __init__(self, threads: int, conditions: str) -> None:
        torch.set_num_threads(threads)
        self._conditions = conditions
        self._work: Work | None = None

    def do(self, shared: list[Any], item: Any) -> tuple[Any, float]:
        if self._work is None:
            work: Work = ray.get(shared[0])
            if conditions(work.device) != self._conditions:
                raise InputError(
                    f"need workers like this process, {self._conditions}: others would compute other last bits; "
                    f"got {conditions(work.device)}"
                )
            self._work = work
        return timed(self._work, item)


def conditions(device: torch.device) -> str:
    """What the last bits of a result depend on beside the work."""
    name = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"torch {torch.__version__} on {name}"


def _results(workers: list[Any], shared: Any, items: Iterable[Any]) -> Iterator[tuple[int, Any, float]]:
    left, busy = enumerate(items), {}

    def hand_out(worker: Any) -> None:
        for number, item in islice(left, 1):
            # In a list the work stays where it is, and a worker fetches it once.
            busy[worker.do.remote([shared], item)] = number, worker

    for worker in workers:
        hand_out(worker)
    while busy:
        (done, *_), _ = ray.wait(list(busy))
        number, worker = busy.pop(done)
        hand_out(worker)  # before the result is looked at: the worker goes on while its result is written
        yield number, *_get(done)


def _get(done: Any) -> tuple[Any, float]:
    try:
        return ray.get(done)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise ChildProcessError(
            f"a batch was handed out {TRIES} times and lost with its worker each time; what was stored before stays. "
            f"Ray says: {reason}"
        ) from error
