"""The nearest error that gradients find, beside the distance that errors in Gaussian noise predict.

Source: Ford, Gilmer, Carlini & Cubuk (2019), "Adversarial examples are a natural consequence of test error in noise".
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy.special import ndtri
from torch import Tensor, nn

from analysis.attacks.pgd import PGD
from analysis.noise_curve import BATCH, check_kind, classified, normals
from analysis.records import read_record, write_record
from certify.errors import InputError, check_count
from certify.rng import Stream
from certify.threat import Threat

_BISECTIONS = 30
# PGD's ball: twice what noise along a line reaches once in 100,000 draws, and not less than 1; in 150 steps.
_FAR, _LEAST_RADIUS, _STEPS_TO_EDGE = -float(ndtri(1e-5)), 1.0, 150


@dataclass(frozen=True, slots=True)
class NoiseAndBoundary:
    """For each example the scale of noise at which it errs at rate mu, and its nearest error by PGD; L2, no box.

    In a half-space at distance d, noise of scale sigma errs with probability mu = Phi(-d / sigma). So the scale at
    which the error rate is mu predicts the distance -sigma * PhiInv(mu).

    Args:
        mu: Error rate; 0 < mu < 1 / 2.
        draws: Standard normals per example, the same for every scale; mu * draws >= 1.
        tolerance: Width of the interval at which the search for sigma ends; > 0.
        ceiling: The largest sigma tried; > tolerance.
        steps: Of PGD, stopped at the first error.

    Raises:
        InputError: a field is out of range.

    Source: Ford et al. (2019), figure 2 and its code: the half-space, the search, PGD's radius and step size.
    """

    mu: float = 0.01
    draws: int = 1000
    tolerance: float = 0.001
    ceiling: float = 1.0
    steps: int = 200

    def __post_init__(self) -> None:
        check_count("draws", self.draws)
        check_count("steps", self.steps)
        if not (0 < self.mu < 0.5 and self.mu * self.draws >= 1):
            raise InputError(f"need 0 < mu < 1/2 and mu * draws >= 1; got {self.mu!r}, {self.draws}")
        if not 0 < self.tolerance < self.ceiling < math.inf:
            raise InputError(f"need 0 < tolerance < ceiling, finite; got {self.tolerance!r}, {self.ceiling!r}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, rng: Stream) -> "BoundaryDistances":
        """Look at every example by itself.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs.
            y: (n,) labels.
            rng: The normals of example i come from its child i.

        Raises:
            InputError: training mode, or shapes that do not fit.
        """
        right = classified(model, x, y)
        found = torch.zeros(2, len(x), dtype=torch.float64)
        for i in right.nonzero()[:, 0].tolist():
            one, label = x[i : i + 1], y[i : i + 1]
            sigma = self._scale(model, one, label, rng.child(i))
            found[:, i] = torch.tensor([sigma, self._nearest(model, one, label, min(sigma, self.ceiling))])
        return BoundaryDistances(found[0], found[1], self, rng.seed)

    def _scale(self, model: nn.Module, x: Tensor, y: Tensor, rng: Stream) -> float:
        """Bisect between a scale with at most mu errors and one with more; inf where the ceiling has no more."""
        noise = normals(x, rng, self.draws)

        def errs(sigma: float) -> bool:
            with torch.inference_mode():
                wrong = sum(int((model(x + sigma * part).argmax(1) != y).sum()) for part in noise.split(BATCH))
            return wrong > self.mu * self.draws

        if not errs(self.ceiling):
            return math.inf
        low, high = 0.0, self.ceiling
        while high - low > self.tolerance:
            middle = (low + high) / 2
            low, high = (low, middle) if errs(middle) else (middle, high)
        return (low + high) / 2

    def _nearest(self, model: nn.Module, x: Tensor, y: Tensor, sigma: float) -> float:
        """PGD from x until the first error, then back along the segment to where errors begin; inf without one."""
        radius = max(2 * sigma * _FAR, _LEAST_RADIUS)
        attack = PGD(self.steps, step_size=radius / _STEPS_TO_EDGE, random_start=False)
        found = attack(model, x, y, threat=Threat("L2", radius, box=None), rng=Stream(0))
        if not bool(found.success):
            return math.inf
        # Departs from paper: without the way back, distances would be multiples of the step.
        delta, low, high = found.adversarial - x, 0.0, 1.0
        with torch.inference_mode():
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                wrong = bool(model(x + middle * delta).argmax(1) != y)
                low, high = (low, middle) if wrong else (middle, high)
        return high * float(delta.double().norm())


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryDistances:
    """How far the nearest error is, by gradients, and how far the errors in noise say it is.

    Attributes:
        sigma: (n,) float64 the scale at which the error rate is mu; 0 where x itself is misclassified, inf where even
            the ceiling gives fewer errors.
        distance: (n,) float64 L2 distance of the error that PGD found; 0 where x is one, inf where it found none.
        method: How they were found.
        seed: Of the stream.
    """

    sigma: Tensor
    distance: Tensor
    method: NoiseAndBoundary
    seed: int

    @property
    def predicted(self) -> Tensor:
        """(n,) float64 distance of a half-space with the same error rate: -sigma * PhiInv(mu)."""
        return -self.sigma * float(ndtri(self.method.mu))

    @property
    def used(self) -> Tensor:
        """(n,) bool: classified correctly, with a finite distance and prediction."""
        return (self.sigma > 0) & torch.isfinite(self.sigma) & torch.isfinite(self.distance)

    @property
    def slope(self) -> float:
        """Of distance against prediction, by least squares through the origin; nan without an example to use.

        1 in a half-space; above 1 where gradients find errors only farther off than the errors in noise suggest.
        """
        predicted, distance = self.predicted[self.used], self.distance[self.used]
        return float(predicted @ distance / (predicted @ predicted))

    def save(self, path: Path) -> None:
        """Write a record.

        Raises:
            InputError: the path does not end in .npz.
        """
        provenance = {"kind": "boundary_distances", "seed": self.seed, "method": asdict(self.method)}
        write_record(path, {"sigma": self.sigma, "distance": self.distance}, provenance)

    @staticmethod
    def load(path: Path) -> "BoundaryDistances":
        """Read what `save` wrote.

        Raises:
            InputError: there is no such record.
        """
        arrays, provenance = read_record(path)
        check_kind(path, provenance.get("kind"), "boundary_distances")
        method = NoiseAndBoundary(**provenance["method"])
        sigma, distance = torch.from_numpy(arrays["sigma"]), torch.from_numpy(arrays["distance"])
        return BoundaryDistances(sigma, distance, method, provenance["seed"])
