"""Every radius against the worst classifier there is, found by importance weighting in two and three dimensions.

At the radius of (p_a, p_b), shift the input by it. The worst top class A is the set of probability p_a where the
likelihood ratio w of the shifted noise to the noise is lowest; the worst rival B is the set of probability p_b where it
is highest. With L(p) the shifted noise's probability of the set of probability p with lowest ratio, A keeps L(p_a) and
B has 1 - L(1 - p_b), which includes whatever the shift brings out of the noise's support. A sound radius leaves
L(p_a) + L(1 - p_b) - 1 >= 0 in every direction; an exact one makes it 0 in one. At p_b = 1 - p_a this says that the top
class keeps one half.

False alarms: empirical Bernstein bound (Maurer & Pontil, 2009) at FALSE_ALARM per comparison, fixed sample.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from certify import (
    CubeExponential,
    CubePowerLaw,
    ExponentialL2,
    ExponentialLinf,
    ExponentialPower,
    Gaussian,
    Laplace,
    Stream,
    Uniform,
    UniformBall,
    UniformLinf,
)
from certify.noise import Noise

FALSE_ALARM = 1e-9
SAMPLES = 10**6
Points = NDArray[np.float64]
Vector = NDArray[np.float64]


def max_norm(z: Points) -> Vector:
    return np.abs(z).max(0)


def l2_norm(z: Points) -> Vector:
    return np.sqrt(np.square(z).sum(0))


def inside(condition: NDArray[np.bool_]) -> Vector:
    return np.where(condition, 0.0, -np.inf)


@dataclass(frozen=True)
class Case:
    """A noise, its log density up to a constant, and whether its radius is the largest there is."""

    noise: Noise
    dimension: int
    log_density: Callable[[Points], Vector]
    exact: bool


CASES = [
    Case(Gaussian(0.7), 2, lambda z: -np.square(z).sum(0) / (2 * 0.7**2), exact=True),
    Case(Laplace(0.7), 3, lambda z: -np.abs(z).sum(0) / 0.7, exact=True),
    Case(Uniform(0.7), 3, lambda z: inside(max_norm(z) <= 0.7), exact=True),
    Case(ExponentialPower(0.7, 1.5), 2, lambda z: -(np.abs(z / 0.7) ** 1.5).sum(0), exact=True),
    Case(ExponentialPower(0.7, 6.0), 3, lambda z: -(np.abs(z / 0.7) ** 6).sum(0), exact=True),
    Case(UniformLinf(0.7, 3), 3, lambda z: inside(max_norm(z) <= 0.7), exact=True),
    Case(UniformBall(0.7, 3), 3, lambda z: inside(l2_norm(z) <= 0.7), exact=True),
    Case(ExponentialL2(0.7, 2), 2, lambda z: -l2_norm(z) / 0.7, exact=False),
    Case(ExponentialL2(0.7, 3), 3, lambda z: -l2_norm(z) / 0.7, exact=False),
    Case(ExponentialLinf(0.7, 2), 2, lambda z: -max_norm(z) / 0.7, exact=True),
    Case(ExponentialLinf(0.7, 3), 3, lambda z: -max_norm(z) / 0.7, exact=True),
    Case(CubeExponential(0.7, 2), 2, lambda z: -max_norm(z) / 0.7, exact=False),
    Case(
        CubeExponential(0.7, 3, power=2.0, pole=1.5),
        3,
        lambda z: -1.5 * np.log(max_norm(z)) - np.square(max_norm(z) / 0.7),
        exact=False,
    ),
    Case(CubePowerLaw(0.7, 3, 5.0), 3, lambda z: -5 * np.log1p(max_norm(z) / 0.7), exact=False),
]

PAIRS = [(0.8, 0.2), (0.97, 0.03), (0.4, 0.3), (0.6, 0.1)]


def length(u: Vector, norm: str) -> float:
    return float({"L1": np.abs(u).sum(), "L2": math.sqrt(u @ u), "Linf": np.abs(u).max()}[norm])


def directions(dimension: int, norm: str) -> dict[str, Vector]:
    """Shifts of length one: along an axis, into a corner, and neither. L2 noise is the same in all of them."""
    shifts = {"axis": np.eye(dimension)[0], "oblique": np.array([1.0, -0.6, 0.3])[:dimension]}
    if norm != "L2":
        shifts["corner"] = np.ones(dimension)
    return {name: u / length(u, norm) for name, u in shifts.items()}


WORST = {"L1": "axis", "L2": "axis", "Linf": "corner"}


@lru_cache(maxsize=1)
def draws(case: Case) -> tuple[Points, Vector]:
    out = torch.empty(SAMPLES, case.dimension, dtype=torch.float64)
    case.noise.perturb(out, torch.zeros(case.dimension), Stream(0).child(repr(case.noise)).generator())
    z = np.ascontiguousarray(out.numpy().T)  # (dimension, SAMPLES)
    return z, case.log_density(z)


def kept(case: Case, direction: Vector, radius: float, p_a: float, p_b: float) -> tuple[float, float]:
    """An estimate of P(A) - P(B) under the shifted noise for the worst A and B, and how far off it may be.

    L(p) = max over t of t p - E[(t - w)+] = max over t of E[min(w, t)] - t (1 - p), attained at the p-quantile of w.
    The first mean is bounded by t. The second is E[min(1, t / w)] under the shifted noise, bounded by 1.
    """
    z, log_q = draws(case)
    shift = (radius * direction)[:, None]
    w = np.exp(case.log_density(z - shift) - log_q)
    ranks = [min(int(p * SAMPLES), SAMPLES - 1) for p in (p_a, 1 - p_b)]
    ordered = np.partition(w, ranks)
    total, range_, w_shifted = np.zeros(SAMPLES), 0.0, None
    for p, t in zip((p_a, 1 - p_b), ordered[ranks], strict=True):
        if t <= 1:
            total += t * p + np.minimum(w - t, 0)
        else:
            if w_shifted is None:
                w_shifted = np.exp(log_q - case.log_density(z + shift))
            total += np.minimum(1, t / w_shifted) - t * (1 - p)
        range_ += min(t, 1)
    log = math.log(2 / FALSE_ALARM)
    tolerance = math.sqrt(2 * total.var(ddof=1) * log / SAMPLES) + 7 * log * range_ / (3 * (SAMPLES - 1))
    return float(total.mean()) - 1, tolerance


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case.noise))
def test_no_classifier_breaks_the_radius_and_one_attains_it(case: Case) -> None:
    norm = case.noise.norm
    for name, direction in directions(case.dimension, norm).items():
        for p_a, p_b in PAIRS:
            radius = case.noise.radius(p_a, p_b)
            assert radius > 0
            margin, tolerance = kept(case, direction, radius, p_a, p_b)
            assert tolerance < 0.01
            assert margin >= -tolerance, f"unsound towards {name} at {p_a}, {p_b}"
            if name == WORST[norm] and case.exact:
                assert margin <= tolerance, f"loose at {p_a}, {p_b}"
                longer, tolerance = kept(case, direction, 1.05 * radius, p_a, p_b)
                assert longer < -tolerance, f"a radius longer by a twentieth passes at {p_a}, {p_b}"
