"""How often certificates under L1 noise fail, at fixed sample sizes; a false alarm once in 10^9 runs of each test.

Mutants that must die here: a radius without the halving, draws of another scale than the radius speaks of, and an upper
bound on the runner-up of the selection votes instead of the largest other count.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

from certify import ABSTAIN, Certificate, Laplace, Smoothing, Stream, Uniform, noise, smoothing
from certify.binomial import lower_confidence_bound, upper_confidence_bound
from certify.noise import Noise
from certify.voting import leaders

FALSE_ALARM = 1e-9
ALPHA = 0.05
SCALE = 0.7
NOISES = [Laplace(SCALE), Uniform(SCALE)]


def quantile(law: Noise, p: float) -> float:
    """Of one coordinate, by the textbook."""
    if isinstance(law, Uniform):
        return law.scale * (2 * p - 1)
    u = torch.tensor(p, dtype=torch.float64)
    return float(torch.distributions.Laplace(torch.zeros_like(u), SCALE).icdf(u))


class Intervals(nn.Module):
    """One-dimensional: class k between the k-th and the next cut."""

    def __init__(self, cuts: list[float]) -> None:
        super().__init__()
        self.cuts = torch.tensor(cuts)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot((x > self.cuts).sum(1), len(self.cuts) + 1).float()


def classifier(law: Noise, probabilities: tuple[float, ...]) -> nn.Module:
    """Classes from left to right with these probabilities at the input 0."""
    cuts = [quantile(law, p) for p in itertools.accumulate(probabilities[:-1])]
    return Intervals(cuts).eval()


def failures(certificate: Certificate, true_radius: float) -> int:
    """How many predictions or radii are not true, where class 0 is right up to `true_radius` (never, if negative)."""
    wrong = (certificate.prediction != 0) | (certificate.radius > true_radius)
    return int(((certificate.prediction != ABSTAIN) & wrong).sum())


def is_refuted(count: int, examples: int) -> bool:
    """Whether so many failures have chance below FALSE_ALARM if each has chance at most ALPHA."""
    return binom.sf(count - 1, examples, ALPHA) < FALSE_ALARM


def binary(law: Noise, p: float, examples: int = 2000, n: int = 128) -> int:
    """Failures of the real certifier for two classes; the left one is right up to the p-quantile of the noise."""
    method = Smoothing(law, n0=10, n=n, alpha=ALPHA, box=None)
    rng = Stream(0).child(repr(law), str(p))
    certificate = method(classifier(law, (p, 1 - p)), torch.zeros(examples, 1), rng=rng)
    return failures(certificate, quantile(law, p))


@pytest.mark.parametrize("law", NOISES, ids=repr)
@pytest.mark.parametrize("p", [0.5, 0.51, 0.9, 0.999])
def test_failures_are_at_most_alpha(law: Noise, p: float) -> None:
    assert not is_refuted(binary(law, p), 2000)


def without_halving(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("two_class_radius", "variation_radius"):
        honest = getattr(noise, name)
        monkeypatch.setattr(noise, name, lambda f, p_a, p_b, honest=honest: 2 * honest(f, p_a, p_b))


def narrower_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Laplace, Uniform):
        honest = kind.perturb
        monkeypatch.setattr(
            kind, "perturb", lambda self, *rest, honest=honest, kind=kind: honest(kind(self.scale * 0.9), *rest)
        )


@pytest.mark.parametrize("law", NOISES, ids=repr)
@pytest.mark.parametrize("mutant", [without_halving, narrower_draws])
def test_mutants_die(mutant: Callable[[pytest.MonkeyPatch], None], law: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert is_refuted(binary(law, 0.9), 2000)


SEVERAL = (0.3, 0.25, 0.2, 0.25)
"""The first and the last class meet across the noise: a shift to the right takes from one and gives to the other."""


def several(law: Noise, examples: int, n0: int, n: int, runner_up: float = 0.5) -> int:
    """Failures with four classes, the first right up to the shift that makes it as likely as the last."""
    method = Smoothing(law, n0=n0, n=n, alpha=ALPHA, runner_up=runner_up, box=None)
    model = classifier(law, SEVERAL)
    certificate = method(model, torch.zeros(examples, 1), rng=Stream(1).child(repr(law)))
    true_radius = (quantile(law, 0.3) - quantile(law, 0.25)) / 2
    assert ((certificate.prediction == 0) & (certificate.radius > 0)).any()
    return failures(certificate, true_radius)


def runner_up_of_the_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound the class that came second among the n0 votes, example by example."""
    honest = smoothing.count_votes
    second: list[int] = []

    def count(base, x, law, streams, draws):  # type: ignore[no-untyped-def]
        counts = honest(base, x, law, streams, draws)
        if streams[0].path[-1] == "select":
            second.extend(leaders(counts)[0][:, 1].tolist())
        return counts

    def probabilities(self, counts, chosen, *_):  # type: ignore[no-untyped-def]
        share = self.alpha * self.runner_up
        p_a = lower_confidence_bound(counts[chosen], self.n, self.alpha - share)
        return p_a, upper_confidence_bound(counts[second.pop(0)], self.n, share)

    monkeypatch.setattr(smoothing, "count_votes", count)
    monkeypatch.setattr(Smoothing, "probabilities", probabilities)


@pytest.mark.parametrize("law", NOISES, ids=repr)
def test_two_class_bounds_hold_and_those_on_the_selections_runner_up_do_not(
    law: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"examples": 400, "n0": 30, "n": 4096}
    assert not is_refuted(several(law, **arguments), 400)
    runner_up_of_the_selection(monkeypatch)
    assert is_refuted(several(law, **arguments), 400)
