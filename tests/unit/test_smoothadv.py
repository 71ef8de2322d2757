"""SmoothAdv: which noise its gradients see, who judges, and what it costs."""

import re

import pytest
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from analysis.attacks import smoothadv
from analysis.attacks.attacked import norm_of
from analysis.attacks.pgd import PGD
from analysis.attacks.smoothadv import SmoothAdv
from certify.errors import InputError
from certify.noise import Gaussian
from certify.rng import Stream
from certify.smoothed import SmoothedClassifier
from certify.threat import Threat
from tests.classifiers import Affine, affine


class Recorder(nn.Module):
    """Passes every query on, and keeps those of the attack's gradients: the judge's come without one."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.seen: list[Tensor] = []
        self.judged: list[Tensor] = []
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        (self.seen if x.requires_grad else self.judged).append(x.detach().clone())
        return self.base(x)

    def __deepcopy__(self, memo: object) -> "Recorder":
        return self  # the judge lays out a copy of its own


class Rippled(nn.Module):
    """Two classes a plane apart, and on the margin a ripple that the noise averages away, though not its gradient."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, x: Tensor) -> Tensor:
        margin = (x + 0.25 * (20 * x).sin()).sum(1) / self.dimensions**0.5
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def noises(fresh: bool) -> Tensor:
    """(steps, samples, d): the noise that each step of one restart saw, as the points it was added to were the same."""
    model = Recorder(affine(3, (5,)))
    x = torch.rand(1, 5, generator=torch.Generator().manual_seed(0))
    y = model.base(x).argmax(1)
    attack = SmoothAdv(Gaussian(0.3), samples=4, steps=3, restarts=1, votes=100, alpha=0.01, fresh=fresh)
    attack(model, x, y, threat=Threat("L2", 0.0), rng=Stream(0))
    return torch.stack(model.seen) - x


def test_noise_differs_between_samples_and_steps() -> None:
    e = noises(fresh=True)
    assert e.shape == (3, 4, 5)
    assert torch.unique(e.flatten(0, 1), dim=0).shape[0] == 12


def test_published_variant_keeps_its_noise_over_the_steps() -> None:
    e = noises(fresh=False)
    assert torch.unique(e[0], dim=0).shape[0] == 4
    assert torch.equal(e[0], e[1])
    assert torch.equal(e[0], e[2])


def test_noise_differs_between_restarts_and_examples_and_from_the_judges() -> None:
    model = Recorder(affine(3, (5,)))
    x = torch.rand(1, 5, generator=torch.Generator().manual_seed(0)).expand(2, 5)
    y = model.base(x).argmax(1)
    attack = SmoothAdv(Gaussian(0.3), samples=4, steps=1, restarts=2, votes=128, alpha=0.01, fresh=False)
    assert not attack(model, x, y, threat=Threat("L2", 0.0), rng=Stream(0)).success.any()
    assert torch.unique(torch.cat(model.seen), dim=0).shape[0] == 2 * 2 * 4
    judged = torch.unique(torch.cat(model.judged), dim=0)
    assert judged.shape[0] >= 2 * 3 * 128  # x and two ends for each example
    both = torch.unique(torch.cat([judged, *model.seen]), dim=0)
    assert both.shape[0] == judged.shape[0] + 16


def test_more_samples_make_a_stronger_attack() -> None:
    """Few noisy gradients point anywhere; many point to the boundary. Success at 1.3 times the smoothed distance."""
    d, n = 30, 16
    model = Rippled(d).eval()
    # The ripple's mean under this noise is exp(-18) of itself: g is the smoothing of the plane.
    x = torch.rand(n, d, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1
    x = x + (1.0 - x.sum(1) / d**0.5)[:, None] / d**0.5
    y = torch.ones(n, dtype=torch.int64)
    rates = []
    for samples in (1, 8, 64):
        attack = SmoothAdv(Gaussian(0.3), samples=samples, steps=4, restarts=1, votes=400, alpha=0.01)
        found = attack(model, x, y, threat=Threat("L2", 1.3, box=None), rng=Stream(0))
        rates.append(float(found.success.float().mean()))
    assert rates[0] < rates[1] < rates[2]
    assert rates[0] < 0.2
    assert rates[2] > 0.8


def test_an_affine_classifier_breaks_beyond_its_distance_and_not_before() -> None:
    """Smoothing with a Gaussian moves no plane: 1.3 times the distance breaks every example, 0.95 none."""
    model = affine(2, (1, 3, 3))
    w = (model.linear.weight[1] - model.linear.weight[0]).detach()
    x = torch.rand(3, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 0])
    gap = (model(x) @ torch.tensor([-1.0, 1.0])).detach()
    wanted = 0.5 * w.norm() * (2 * y - 1)
    x = x + (((wanted - gap) / w.square().sum())[:, None] * w).view_as(x)
    assert torch.allclose(model.distance(x), torch.full((3,), 0.5, dtype=torch.float64), rtol=1e-4)
    attack = SmoothAdv(Gaussian(0.25), samples=4, steps=10, restarts=2, votes=500, alpha=1e-6)
    found = attack(model, x, y, threat=Threat("L2", 0.65, box=None), rng=Stream(0))
    assert found.success.all()
    assert torch.allclose(found.distance, norm_of(found.adversarial - x, "L2"))
    assert (found.distance <= 0.65 * (1 + 1e-6)).all()
    below = attack(model, x, y, threat=Threat("L2", 0.475, box=None), rng=Stream(0))
    assert not below.success.any()
    assert torch.isinf(below.distance).all()
    assert torch.equal(below.adversarial, x)


class Needle(nn.Module):
    """Class 1 within 0.05 of the origin, class 0 elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        margin = 0.05 - x.flatten(1).norm(dim=1)
        return torch.stack([torch.zeros_like(margin), margin], dim=1)


def test_the_smoothed_classifier_judges_not_its_base() -> None:
    """At the origin f says 1 and g says 0, and an attack on g owes g's answer."""
    model, x, threat = Needle().eval(), torch.zeros(1, 3), Threat("L2", 0.0, box=None)
    attack = SmoothAdv(Gaussian(0.5), samples=2, steps=1, restarts=1, votes=200, alpha=0.01)
    for label, wrong in ((0, False), (1, True)):
        y = torch.tensor([label])
        assert bool(attack(model, x, y, threat=threat, rng=Stream(0)).success[0]) is wrong
        assert bool(PGD(steps=1)(model, x, y, threat=threat, rng=Stream(0)).success[0]) is not wrong


def test_an_abstention_is_no_counterexample() -> None:
    """On the boundary the votes are even: g is not said to err, whichever the label."""
    model = Affine(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.zeros(2)).eval()
    x = torch.tensor([[0.0, 0.3]]).expand(20, 2)
    attack = SmoothAdv(Gaussian(0.5), samples=1, steps=1, restarts=1, votes=500, alpha=1e-6)
    for label in (0, 1):
        y = torch.full((20,), label)
        assert not attack(model, x, y, threat=Threat("L2", 0.0, box=None), rng=Stream(label)).success.any()


def test_costs_count_noisy_copies_and_broken_examples_stop() -> None:
    model = affine(3, (5,))
    x = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    y[1] = (y[1] + 1) % 3
    recorder = Recorder(model)
    attack = SmoothAdv(Gaussian(0.1), samples=4, steps=5, restarts=2, votes=128, alpha=1e-6)
    found = attack(recorder, x, y, threat=Threat("L2", 1e-4), rng=Stream(0))
    assert found.success.tolist() == [False, True, False]
    assert float(found.distance[1]) == 0.0
    assert found.forwards.tolist() == [3 * 128 + 2 * 5 * 4, 128, 3 * 128 + 2 * 5 * 4]
    assert found.backwards.tolist() == [40, 0, 40]
    assert sum(seen.shape[0] for seen in recorder.seen) == int(found.backwards.sum())
    assert found.loss is not None
    assert found.loss.shape == (3, 10)
    assert torch.isfinite(found.loss).all(dim=1).tolist() == [True, False, True]


def test_the_objective_is_minus_the_log_of_the_mean_probability() -> None:
    """Not the mean of the logs, which Jensen's inequality makes larger."""
    base, x = affine(3, (5,)), torch.rand(1, 5, generator=torch.Generator().manual_seed(0))
    y = base(x).argmax(1)
    recorder = Recorder(base)
    attack = SmoothAdv(Gaussian(0.5), samples=16, steps=2, restarts=1, votes=100, alpha=0.01)
    found = attack(recorder, x, y, threat=Threat("L2", 0.01), rng=Stream(3))
    assert found.loss is not None
    for step, noisy in enumerate(recorder.seen):
        p = base(noisy).softmax(1)[:, y[0]].detach()
        assert float(found.loss[0, step]) == pytest.approx(-float(p.mean().log()), rel=1e-5)
        assert float(found.loss[0, step]) < -float(p.log().mean()) - 1e-4


def test_an_example_does_not_depend_on_its_batch_and_the_stream_decides() -> None:
    model = affine(3, (5,))
    x = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    attack = SmoothAdv(Gaussian(0.2), samples=3, steps=4, restarts=2, votes=128, alpha=0.01)
    state = torch.get_rng_state()
    threat = Threat("L2", 1.5 * float(model.distance(x).median()), box=None)
    whole, again = (attack(model, x, y, threat=threat, rng=Stream(4)) for _ in range(2))
    part = attack(model, x[:2], y[:2], threat=threat, rng=Stream(4))
    assert whole.success.any()
    assert torch.equal(whole.adversarial, again.adversarial)
    assert torch.equal(whole.adversarial[:2], part.adversarial)
    assert torch.equal(whole.forwards[:2], part.forwards)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_a_mutant_with_one_noise_for_all_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published "second-order" attack: every sample and step drew the same tensor."""

    class Same(SmoothedClassifier):
        def forward(self, x: Tensor) -> Tensor:
            e = torch.empty(x.shape[1:]).normal_(0.0, 0.3, generator=self.stream.generator())
            return self.base((x + e).expand(self.samples, *x.shape[1:])).softmax(1).mean(0, keepdim=True).log()

    monkeypatch.setattr(smoothadv, "SmoothedClassifier", Same)
    with pytest.raises(AssertionError):
        test_noise_differs_between_samples_and_steps()


def test_a_judge_that_misleads_is_rare() -> None:
    """Just inside the boundary, where g is right with probability 0.52 a vote, alpha bounds the false alarms."""
    model = Affine(torch.tensor([[-1.0], [1.0]]), torch.zeros(2)).eval()
    x = torch.full((200, 1), -0.025)  # g says 0
    assert float(ndtr(0.025 / 0.5)) == pytest.approx(0.52, abs=1e-3)
    attack = SmoothAdv(Gaussian(0.5), samples=1, steps=1, restarts=1, votes=50, alpha=0.05)
    found = attack(model, x, torch.zeros(200, dtype=torch.int64), threat=Threat("L2", 0.0, box=None), rng=Stream(0))
    # Two judgements each, a false one with probability at most 0.025 (two-sided): 10 expected at most, 31 at 1e-8.
    assert int(found.success.sum()) <= 31


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"samples": 0}, "need an integer samples >= 1; got 0"),
        ({"steps": 0}, "need an integer steps >= 1; got 0"),
        ({"restarts": 0}, "need an integer restarts >= 1; got 0"),
        ({"votes": 0}, "need an integer votes >= 1; got 0"),
        ({"votes": 8, "alpha": 0.001}, "need votes >= 11 to ever decide at alpha = 0.001; got 8"),
        ({"alpha": 1.0}, "need 0 < alpha < 1; got 1.0"),
    ],
)
def test_hyperparameters_are_checked(bad: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        SmoothAdv(Gaussian(0.5), **bad)  # pyright: ignore[reportArgumentType]
