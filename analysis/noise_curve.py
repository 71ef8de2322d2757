"""Accuracy in Gaussian noise: a test of robustness without any gradient, which masking cannot pass.

Source: Ford, Gilmer, Carlini & Cubuk (2019), "Adversarial examples are a natural consequence of test error in noise".
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Queries
from analysis.evaluation import exact_interval
from analysis.records import read_record, write_record
from certify.binomial import check_alpha
from certify.errors import InputError, check_count
from certify.rng import Stream
from certify.threat import Box, Threat, check_box

BATCH = 500


@dataclass(frozen=True, slots=True)
class NoiseLevels:
    """Accuracy in Gaussian noise; the standard normals of a draw are the same at all levels.

    Args:
        sigmas: Standard deviations >= 0, in input units.
        draws: Noisy copies per example and level; at least 2, for a standard deviation.
        rho: Failure probability of the intervals; 0 < rho < 1.
        box: Clip noisy inputs to it; None leaves them.

    Raises:
        InputError: a field is out of range.

    Source: Ford et al. (2019), ten draws per point; Carlini et al. (2019) ask for the same curve.
    """

    sigmas: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
    draws: int = 10
    rho: float = 0.05
    box: Box = None

    def __post_init__(self) -> None:
        check_count("draws", self.draws)
        check_alpha(self.rho, "rho")
        check_box(self.box)
        if self.draws < 2:
            raise InputError(f"need draws >= 2 for a standard deviation; got {self.draws}")
        if not self.sigmas or any(not (math.isfinite(s) and s >= 0) for s in self.sigmas):
            raise InputError(f"need finite sigmas >= 0, at least one; got {self.sigmas!r}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, rng: Stream) -> "NoiseCurve":
        """Classify noisy copies of every example.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs.
            y: (n,) labels.
            rng: Draw r of example i comes from its child (i, r).

        Raises:
            InputError: training mode, or shapes that do not fit.
        """
        classified(model, x, y)
        right = torch.zeros(len(self.sigmas), self.draws, len(x), dtype=torch.bool)
        with torch.inference_mode():
            for first in range(0, len(x), BATCH):
                part, labels = x[first : first + BATCH], y[first : first + BATCH]
                for draw in range(self.draws):
                    noise = torch.cat([normals(part[:1], rng.child(first + i, draw)) for i in range(len(part))])
                    for level, sigma in enumerate(self.sigmas):
                        noisy = part + sigma * noise
                        noisy = noisy if self.box is None else noisy.clamp(*self.box)
                        right[level, draw, first : first + BATCH] = (model(noisy).argmax(1) == labels).cpu()
        return NoiseCurve(right, self, rng.seed)


@dataclass(frozen=True, slots=True, eq=False)
class NoiseCurve:
    """Accuracy in Gaussian noise.

    Attributes:
        right: (k, draws, n) bool, which examples each draw leaves correct, by level.
        method: Levels, draws, box and the intervals' failure probability.
        seed: Of the stream.
    """

    right: Tensor
    method: NoiseLevels
    seed: int

    @property
    def n(self) -> int:
        """Examples."""
        return self.right.shape[2]

    @property
    def correct(self) -> Tensor:
        """(k, draws) int64, how many examples each draw leaves correct."""
        return self.right.sum(2)

    @property
    def mean(self) -> Tensor:
        """(k,) float64 accuracy, mean over draws."""
        return self.correct.double().mean(1) / self.n

    @property
    def sd(self) -> Tensor:
        """(k,) float64 standard deviation over draws: of the noise alone, the examples being the same."""
        return self.correct.double().std(1) / self.n

    @property
    def interval(self) -> list[tuple[float, float]]:
        """(k,) exact two-sided intervals for the population's accuracy, one noisy copy per example.

        They rest on the first draw alone: the draws of one example are no independent trials.
        """
        return [exact_interval(count, self.n, self.method.rho) for count in self.correct[:, 0].tolist()]

    def save(self, path: Path) -> None:
        """Write a record.

        Raises:
            InputError: the path does not end in .npz.
        """
        provenance = {"kind": "noise_curve", "seed": self.seed, "method": asdict(self.method)}
        write_record(path, {"right": self.right}, provenance)

    @staticmethod
    def load(path: Path) -> "NoiseCurve":
        """Read what `save` wrote.

        Raises:
            InputError: there is no such record.
        """
        arrays, provenance = read_record(path)
        check_kind(path, provenance.get("kind"), "noise_curve")
        method = provenance["method"]
        box = None if method["box"] is None else tuple(method["box"])
        levels = NoiseLevels(tuple(method["sigmas"]), method["draws"], method["rho"], box)
        return NoiseCurve(torch.from_numpy(arrays["right"]), levels, provenance["seed"])


def classified(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(n,) bool, which inputs are classified correctly.

    Raises:
        InputError: training mode, or shapes that do not fit.
    """
    queries = Queries(model, x, y, Threat("L2", 1.0, box=None))
    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in queries.x.split(BATCH)]) == y


def normals(like: Tensor, rng: Stream, count: int = 1) -> Tensor:
    """(count, ...) standard normals."""
    empty = torch.empty((count, *like.shape[1:]), dtype=like.dtype, device=like.device)
    return empty.normal_(generator=rng.generator(like.device))


def check_kind(path: Path, kind: object, needed: str) -> None:
    """Refuse a record of another kind.

    Raises:
        InputError: it is of another kind.
    """
    if kind != needed:
        raise InputError(f"need a record of kind {needed!r}; {path} is of kind {kind!r}")
