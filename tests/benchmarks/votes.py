"""Votes per second on LeNet: ours, a plain loop that does what the reference does, and bare forward passes."""

import resource

import numpy as np
import torch
from torch import Tensor, nn

from certify import BaseClassifier, Execution, Gaussian, Stream
from certify.voting import count_votes
from paper_repro.models import lenet, linear
from tests.benchmarks.timing import seconds

SIGMA = 0.5
VOTES = 20_480
REFERENCE_BATCHES = (1000, 400)
"""The reference's default batch, and the one its experiments state."""


def plain_loop(model: nn.Module, x: Tensor, n: int, batch: int) -> np.ndarray:
    """Repeat, add fresh noise, classify eagerly in float32, count labels one by one in numpy."""
    counts = np.zeros(10, dtype=int)
    with torch.no_grad():
        left = n
        while left > 0:
            size = min(batch, left)
            left -= size
            copies = x.repeat((size, 1, 1, 1))
            labels = model(copies + torch.randn_like(copies) * SIGMA).argmax(1)
            for label in labels.cpu().numpy():
                counts[label] += 1
    return counts


def main() -> None:
    torch.manual_seed(0)
    model = lenet().eval()
    x = torch.rand(1, 1, 28, 28)
    executions = {
        "float32": Execution(),
        "bfloat16": Execution("bfloat16"),
        "bfloat16 compiled": Execution("bfloat16", compiled=True),
    }
    bases = {name: BaseClassifier(model, x, e) for name, e in executions.items()}
    if not bases["bfloat16 compiled"].execution.compiled:
        print("torch.compile does not work here; 'compiled' is eager")

    def bare(base: BaseClassifier) -> None:
        # Noisy ones, drawn once: on copies of one image every branch of the pooling is predicted, and it runs faster.
        inputs = x + SIGMA * torch.randn(base.execution.rows, 1, 28, 28)
        for _ in range(VOTES // base.execution.rows):
            base.logits(inputs)

    candidates = {
        **{f"plain loop, batch {b}": (lambda b=b: plain_loop(model, x[0], VOTES, b)) for b in REFERENCE_BATCHES},
        **{
            f"ours, {name}": (lambda base=base: count_votes(base, x, Gaussian(SIGMA), [Stream(0)], VOTES))
            for name, base in bases.items()
        },
        **{f"bare forward, {name}": (lambda base=base: bare(base)) for name, base in bases.items()},
    }
    rate = {name: VOTES / t for name, t in seconds(candidates).items()}
    reference = rate["plain loop, batch 1000"]
    for name, r in rate.items():
        print(f"{name:32s} {r:10.0f} votes/s   {r / reference:6.2f} x plain loop (batch 1000)")
    for name in bases:
        print(f"ours / bare forward, {name}: {rate[f'ours, {name}'] / rate[f'bare forward, {name}']:.2f}")
    memory()


def memory() -> None:
    """Peak memory of 10,000 and of 1,000,000 votes in one process."""
    x = torch.rand(1, 1, 28, 28)
    base = BaseClassifier(linear().eval(), x)
    peaks = []
    for n in (10_000, 1_000_000):
        count_votes(base, x, Gaussian(SIGMA), [Stream(0)], n)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"peak memory: {peaks[0]:.0f} MiB after n = 10,000, {peaks[1]:.0f} MiB after n = 1,000,000")
