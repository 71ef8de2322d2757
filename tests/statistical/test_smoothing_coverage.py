"""How often certificates fail, at fixed sample sizes; a false alarm once in 10^9 runs of each test.

Mutants that must die here: selection and estimation on shared draws, alpha doubled, a Wald interval. Rounding to
nearest dies by exact values, in tests/unit/test_binomial.py.
"""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.special import ndtri
from scipy.stats import binom

from certify import ABSTAIN, Gaussian, Smoothing, Stream, smoothing
from tests.classifiers import threshold_with_probability

FALSE_ALARM = 1e-9
ALPHA = 0.05
SIGMA = 0.7
# Enough examples that twice alpha is seen with near certainty.
EXAMPLES = {100: 4000, 1000: 2000}


def failures(p: float, n: int, *, n0: int = 10, seed: int = 0) -> int:
    """Run the real certifier on m copies of one input; count predictions or radii that are not true."""
    model, true_radius = threshold_with_probability(p, SIGMA)
    method = Smoothing(Gaussian(SIGMA), n0=n0, n=n, alpha=ALPHA, box=None)
    certificate = method(model, torch.zeros(EXAMPLES[n], 1), rng=Stream(seed).child(str(p), n))
    wrong_class = certificate.prediction == 1  # at p = 1/2 neither class is right
    too_long = certificate.radius > true_radius
    return int(((certificate.prediction != ABSTAIN) & (wrong_class | too_long)).sum())


def is_refuted(count: int, n: int) -> bool:
    """Whether so many failures have chance below FALSE_ALARM if each has chance at most ALPHA."""
    return binom.sf(count - 1, EXAMPLES[n], ALPHA) < FALSE_ALARM


@pytest.mark.parametrize("n", [100, 1000])
@pytest.mark.parametrize("p", [0.5, 0.51, 0.9, 0.99, 0.999])
def test_failures_are_at_most_alpha(p: float, n: int) -> None:
    assert not is_refuted(failures(p, n), n)


def shared_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = smoothing.count_votes

    def same_stream(base, x, noise, streams, draws):  # type: ignore[no-untyped-def]
        return honest(base, x, noise, [Stream(s.seed, (*s.path[:-1], "shared")) for s in streams], draws)

    monkeypatch.setattr(smoothing, "count_votes", same_stream)


def doubled_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = smoothing.lower_confidence_bound
    monkeypatch.setattr(smoothing, "lower_confidence_bound", lambda k, n, alpha: honest(k, n, 2 * alpha))


def wald(monkeypatch: pytest.MonkeyPatch) -> None:
    def interval(k: int, n: int, alpha: float) -> float:
        return max(0.0, k / n - float(ndtri(1 - alpha)) * math.sqrt(k / n * (1 - k / n) / n))

    monkeypatch.setattr(smoothing, "lower_confidence_bound", interval)


@pytest.mark.parametrize(
    ("mutant", "p", "n", "n0"), [(shared_draws, 0.5, 100, 100), (doubled_alpha, 0.5, 100, 10), (wald, 0.99, 100, 10)]
)
def test_mutants_die(
    mutant: Callable[[pytest.MonkeyPatch], None], p: float, n: int, n0: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_refuted(failures(p, n, n0=n0), n)
    mutant(monkeypatch)
    assert is_refuted(failures(p, n, n0=n0), n)


@pytest.mark.parametrize("p", [0.5, 0.51, 0.6, 0.9])
def test_predictions_are_wrong_at_most_alpha(p: float) -> None:
    model, _ = threshold_with_probability(p, SIGMA)
    method = Smoothing(Gaussian(SIGMA), n=100, alpha=ALPHA, box=None)
    prediction = method.predict(model, torch.zeros(EXAMPLES[100], 1), rng=Stream(1).child(str(p)))
    wrong = prediction == 1 if p > 0.5 else prediction != ABSTAIN
    assert not is_refuted(int(wrong.sum()), 100)
    if p == 0.9:
        assert (prediction == 0).double().mean() > 0.99  # and not by abstaining


def test_population_bounds_cover_certificate_and_sampling_failure() -> None:
    """Examples whose certificates fail as often as alpha allows, drawn from a population of known accuracy."""
    from certify.accuracy import accuracy_of_scores

    generator = torch.Generator().manual_seed(0)
    truth, alpha, rho, m, repetitions = 0.6, 0.05, 0.1, 200, 4000
    misses = {"lower": 0, "band": 0, "undiscounted": 0}
    for _ in range(repetitions):
        certified = torch.rand(m, generator=generator) < truth + (1 - truth) * alpha
        score = torch.where(certified, 1.0, -torch.inf).double().numpy()
        bounds = accuracy_of_scores(score, [0.5], alpha=alpha, rho=rho)
        misses["lower"] += bool(bounds.lower[0] > truth)
        misses["band"] += bool(bounds.band[0] > truth)
        misses["undiscounted"] += bool(accuracy_of_scores(score, [0.5], alpha=0.0, rho=rho).lower[0] > truth)
    refuted = {k: binom.sf(v - 1, repetitions, rho) < FALSE_ALARM for k, v in misses.items()}
    assert refuted == {"lower": False, "band": False, "undiscounted": True}
