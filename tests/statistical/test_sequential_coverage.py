"""Anytime-valid estimators at stopping times chosen by the data, at fixed sample sizes; false alarm 1e-9.

Mutants that must die: a fixed-n bound peeked at, radii opened out of order, W drawn again, Sison-Glaz.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from statsmodels.stats.proportion import multinomial_proportions_confint

from certify import Gaussian, Stream
from certify.adaptive import AdaptiveSmoothing, ToleranceSmoothing
from certify.binomial import lower_confidence_bound, randomized_lower_bound
from certify.confseq import kt_bounds, kt_log_wealth, threshold_test
from tests.classifiers import threshold_with_probability

FALSE_ALARM = 1e-9
ALPHA = 0.05


def is_refuted(failures: int, runs: int, alpha: float = ALPHA) -> bool:
    return binom.sf(failures - 1, runs, alpha) < FALSE_ALARM


def paths(p: float, runs: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Hits after each vote, (runs, n), and the vote numbers."""
    votes = np.random.default_rng(seed).random((runs, n)) < p
    return votes.cumsum(1), np.arange(1, n + 1)


@pytest.mark.parametrize("tau", [0.5, 0.51, 0.9, 0.99, 0.999])
def test_a_true_claim_is_rarely_ever_rejected(tau: float) -> None:
    """The hardest true claim, p = tau, looked at after every one of 2,000 votes."""
    hits, trials = paths(tau, 2000, 2000)
    ever = threshold_test(tau, ALPHA, 2000).rejects(hits, np.broadcast_to(trials, hits.shape)).any(1)
    assert not is_refuted(int(ever.sum()), 2000)


def test_peeking_at_a_fixed_bound_is_caught() -> None:
    hits, trials = paths(0.5, 2000, 300)
    bounds = np.array([[lower_confidence_bound(k, n, ALPHA) for k in range(n + 1)] + [0] * (300 - n) for n in trials])
    peeked = np.stack([bounds[n - 1, hits[:, n - 1]] for n in trials], 1) > 0.5
    assert is_refuted(int(peeked.any(1).sum()), 2000)
    assert not is_refuted(int(peeked[:, -1].sum()), 2000)  # looked at once, it is sound


@pytest.mark.parametrize("p", [0.5, 0.9, 0.999])
def test_the_confidence_sequence_covers_at_every_look(p: float) -> None:
    hits, trials = paths(p, 1000, 500)
    missed = np.zeros(1000, bool)
    for n in trials[::7]:
        lower, upper = kt_bounds(hits[:, n - 1], np.full(1000, n), ALPHA)
        missed |= (lower > p) | (upper < p)
    assert not is_refuted(int(missed.sum()), 1000)


@pytest.mark.parametrize("p", [0.5, 0.52, 0.8413447, 0.9, 0.995])
@pytest.mark.parametrize("kind", ["grid", "tolerance"])
def test_adaptive_certificates_fail_at_most_alpha(p: float, kind: str) -> None:
    """The real certifier, at its own data-dependent stopping; 0.8413447 sits just above the threshold of radius 1."""
    model, radius = threshold_with_probability(p, 1.0)
    noise = Gaussian(1.0)
    method = (
        AdaptiveSmoothing(noise, (0.0, 0.25, 0.5, 1.0, 1.5, 2.0), n0=10, n_max=2000, alpha=ALPHA, box=None)
        if kind == "grid"
        else ToleranceSmoothing(noise, 0.2, n0=10, n_max=1000, alpha=ALPHA, box=None)
    )
    runs = 1000
    c = method(model, torch.zeros(runs, 1), rng=Stream(3).child(str(p)))
    false = (c.prediction >= 0) & ((c.prediction == 1) | (c.radius > radius) | (radius <= 0))
    assert not is_refuted(int(false.sum()), runs)
    if p >= 0.9:
        assert (c.radius > 0).double().mean() > 0.9  # and not by abstaining


def test_testing_all_radii_side_by_side_is_caught() -> None:
    """Forty true claims, each tested at alpha on votes of its own: why radii are opened in order, on one stream."""
    runs, generator = 600, np.random.default_rng(1)
    ever = np.zeros(runs, bool)
    for tau in np.linspace(0.5, 0.9, 40):
        hits = (generator.random((runs, 400)) < tau).cumsum(1)
        test = threshold_test(float(tau), ALPHA, 400)
        ever |= test.rejects(hits, np.broadcast_to(np.arange(1, 401), hits.shape)).any(1)
    assert is_refuted(int(ever.sum()), runs)


@pytest.mark.parametrize("p", [0.5, 0.51, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("n", [100, 1000])
def test_randomized_bound_has_its_level(p: float, n: int) -> None:
    """The level is alpha exactly, so both sides of it are tested, and drawing W until it suits is refuted."""
    runs = 20_000
    generator = np.random.default_rng(0)
    k, w = generator.binomial(n, p, runs), generator.random(runs)
    misses = sum(randomized_lower_bound(int(a), n, ALPHA, float(b)) > p for a, b in zip(k, w, strict=True))
    assert not is_refuted(misses, runs)
    assert binom.cdf(misses, runs, ALPHA) > FALSE_ALARM


def test_drawing_w_again_is_caught() -> None:
    runs, n, p = 4000, 100, 0.99
    generator = np.random.default_rng(0)
    k, w = generator.binomial(n, p, runs), generator.random((runs, 20)).min(1)
    misses = sum(randomized_lower_bound(int(a), n, ALPHA, float(b)) > p for a, b in zip(k, w, strict=True))
    assert is_refuted(misses, runs)


def test_sison_glaz_is_caught() -> None:
    """The interval of the founding paper fails near p = 1: its lower end exceeds p far more often than alpha."""
    runs, n, p = 60, 100, 0.995
    draws = np.random.default_rng(0).multinomial(n, [p, 0.0025, 0.0025], runs)
    sison = np.array([multinomial_proportions_confint(d, alpha=ALPHA, method="sison-glaz")[0, 0] for d in draws])
    assert is_refuted(int((sison > p).sum()), runs)
    exact = np.array([lower_confidence_bound(int(d[0]), n, ALPHA) for d in draws])
    assert not is_refuted(int((exact > p).sum()), runs)


# tau -> p -> mean votes of the two-sided betting rule at alpha = .001, from the specification.
MEAN_STOPPING = {
    0.8413447460685429: {0.5: 29, 0.7: 140, 0.8: 1695, 0.9: 668, 0.95: 159, 0.99: 69, 0.999: 56},
    0.9772498680518208: {0.9: 145, 0.95: 880, 0.99: 2354, 0.999: 547},
}


@pytest.mark.parametrize(("tau", "p"), [(tau, p) for tau, row in MEAN_STOPPING.items() for p in row])
def test_a_single_radius_takes_no_more_votes_than_two_sided_betting(tau: float, p: float) -> None:
    """Looked at after every vote; certified by our test, or given up when two-sided betting gives up.

    The comparison allows the specification's figure five standard errors of our own mean.
    """
    runs, n = 400, 12_000
    hits, trials = paths(p, runs, n, seed=5)
    certified = threshold_test(tau, 0.001, 100_000).rejects(hits, np.broadcast_to(trials, hits.shape))
    given_up = (kt_log_wealth(hits, trials[None], tau) > -math.log(0.001)) & (hits < tau * trials[None])
    stopped = certified | given_up
    assert stopped.any(1).mean() > 0.98
    times = np.where(stopped.any(1), stopped.argmax(1) + 1, n)
    assert times.mean() <= MEAN_STOPPING[tau][p] + 5 * times.std() / math.sqrt(runs)
    if p > tau:
        assert times.mean() < MEAN_STOPPING[tau][p]
