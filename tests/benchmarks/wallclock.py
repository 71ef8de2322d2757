"""Seconds for one certified-accuracy table: 500 MNIST images, sigma .5, radii 0 to 1.25, alpha .001, n_max 100,000.

Ours is AdaptiveSmoothing on LeNet in bfloat16, compiled where that works; the plain loop is what the reference does, at
n = 100,000, timed on a few images and scaled. The fixed table that ours is held against takes 50 million votes: it is
certified once into runs/bench, resumably.
"""

import time
from pathlib import Path

import numpy as np
import torch

from certify import BaseClassifier, Execution, Gaussian, Smoothing, Stream
from certify.adaptive import AdaptiveSmoothing
from certify.campaign import run
from paper_repro.data import mnist
from paper_repro.models import lenet
from paper_repro.training import Training, fit
from paper_repro.training.noise import NoiseAugmentation
from tests.benchmarks.votes import REFERENCE_BATCHES, plain_loop

FOLDER = Path("runs/bench")
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
INDICES = "0:10000:20"
TIMED_IMAGES = 3
NOISE = Gaussian(0.5)


def table(scores: np.ndarray) -> np.ndarray:
    """Certified accuracy at RADII."""
    return np.array([(scores >= r).mean() for r in RADII])


def main() -> None:
    model = lenet()
    fit(model, mnist("train"), NoiseAugmentation(NOISE), Training(epochs=8), seed=0, out=FOLDER / "lenet")
    data = mnist("test")
    x, y = data.x[::20], data.y[::20]
    execution = Execution("bfloat16", compiled=True)

    started = time.perf_counter()
    base = BaseClassifier(model, x[:1], execution)
    prepared = time.perf_counter() - started
    started = time.perf_counter()
    adaptive = AdaptiveSmoothing(NOISE, RADII)(base, x, rng=[Stream(0).child(i) for i in data.id[::20].tolist()])
    ours = time.perf_counter() - started
    votes = float(adaptive.samples.double().mean())
    print(f"ours: {ours:.1f} s for {len(x)} images, {votes:.0f} votes per image; {prepared:.1f} s to prepare, once")
    for batch in REFERENCE_BATCHES:
        started = time.perf_counter()
        for i in range(TIMED_IMAGES):
            plain_loop(model, x[i * 150], 100_000, batch)
        plain = (time.perf_counter() - started) / TIMED_IMAGES * len(x)
        print(f"plain loop, batch {batch}: {plain:.0f} s, scaled from {TIMED_IMAGES} images: {plain / ours:.0f} x ours")

    method = Smoothing(NOISE)
    names = ("lenet", "mnist test")
    fixed = run(FOLDER / "fixed.sqlite", method, model, data, names=names, indices=INDICES, execution=execution)
    score = np.where((adaptive.prediction == y).numpy(), adaptive.radius.numpy(), -np.inf)
    difference = table(score) - table(fixed.scores())
    print("fixed table  ", " ".join(f"{v:.3f}" for v in table(fixed.scores())))
    print("our table    ", " ".join(f"{v:.3f}" for v in table(score)))
    print(f"largest difference {np.abs(difference).max():.3f} ({torch.__version__}, {torch.get_num_threads()} threads)")
