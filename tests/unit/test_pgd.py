"""PGD, FGSM, random noise and transfer: what they may query, what they return, what they cost."""

import re

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from analysis.attacks import pgd
from analysis.attacks.attacked import Attack, Attacked, Queries, norm_of
from analysis.attacks.fgsm import FGSM
from analysis.attacks.pgd import PGD
from analysis.attacks.random_noise import RandomNoise, uniform_in_ball
from analysis.attacks.transfer import Transfer
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Norm, Threat
from tests.classifiers import affine

NORMS: tuple[Norm, ...] = ("L1", "L2", "Linf")


class Recorder(nn.Module):
    """Passes every query on, and keeps it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.seen: list[Tensor] = []
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.base(x)


def curved(seed: int = 0, size: int = 6, classes: int = 3) -> nn.Module:
    """A small network with curved boundaries, in float64 so that a batch's size moves no bits that matter."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 12), nn.Tanh(), nn.Linear(12, classes)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 1.0, generator=generator)
    return model


def inputs(n: int, size: int = 6, seed: int = 0) -> Tensor:
    return torch.rand(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ATTACKS: list[Attack] = [
    FGSM(),
    FGSM(random_start=True, loss="margin"),
    PGD(steps=4),
    PGD(steps=4, restarts=2, loss="dlr", early_stop=False),
    PGD(steps=3, step="sign", loss="margin"),
    PGD(steps=3, step="normalized", step_size=0.3),
    PGD(steps=4, step="momentum", random_start=False, early_stop=False),
    PGD(steps=4, step="adam", restarts=2),
    RandomNoise(draws=7, chunk=3),
    Transfer(curved(seed=7), PGD(steps=3), "another seed"),
]


def check(found: Attacked, model: Recorder, x: Tensor, y: Tensor, threat: Threat) -> None:
    """What every attack owes: no query outside ball and box, true counterexamples, honest distances and costs."""
    for seen in model.seen:
        # Each query belongs to one of the examples.
        gaps = torch.stack([norm_of(seen - around, threat.norm) for around in x], dim=1).amin(1)
        assert (gaps <= threat.eps * (1 + 1e-9)).all()
        if threat.box is not None:
            assert ((seen >= threat.box[0]) & (seen <= threat.box[1])).all()
    hit = found.success
    distance = norm_of(found.adversarial - x, threat.norm)
    assert torch.equal(torch.isfinite(found.distance), hit)
    assert torch.allclose(found.distance[hit], distance[hit], rtol=1e-12, atol=0.0)
    assert (model.base(found.adversarial).argmax(1) != y)[hit].all()
    assert torch.equal(found.adversarial[~hit], x[~hit])
    assert (found.distance[model.base(x).argmax(1) != y] == 0).all()
    assert int(found.forwards.sum()) == sum(seen.shape[0] for seen in model.seen)


@settings(max_examples=60, deadline=None, database=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
@given(
    attack=st.sampled_from(ATTACKS),
    norm=st.sampled_from(NORMS),
    eps=st.sampled_from([0.0, 1e-3, 0.1, 0.5, 2.0]),
    box=st.sampled_from([None, (0.0, 1.0), (-0.5, 1.5)]),
    n=st.integers(1, 4),
    seed=st.integers(0, 20),
)
def test_attacks_keep_to_the_rules(
    attack: Attack, norm: Norm, eps: float, box: tuple[float, float] | None, n: int, seed: int
) -> None:
    model, x = Recorder(curved(seed)), inputs(n, seed=seed)
    y = torch.tensor([0, 1, 2, 1])[:n]
    threat = Threat(norm, eps, box)
    check(attack(model, x, y, threat=threat, rng=Stream(seed)), model, x, y, threat)


@pytest.mark.parametrize("mutant", ["no projection", "no ball", "wrong distance", "wrong count"])
def test_the_rules_catch_mutants(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, result = Queries.keep, Queries.result
    if mutant == "no projection":
        monkeypatch.setattr(pgd, "project", lambda z, x, threat: z)
    elif mutant == "no ball":

        def outside(self: Queries, z: Tensor, wrong: Tensor, live: Tensor) -> None:
            keep(self, z + 0.1, wrong, live)  # what is kept is not what was classified

        monkeypatch.setattr(Queries, "keep", outside)
    elif mutant == "wrong distance":

        def nearer(self: Queries, attack: object, loss: Tensor | None = None) -> Attacked:
            self.distance = self.distance * 0.999
            return result(self, attack, loss)

        monkeypatch.setattr(Queries, "result", nearer)
    else:

        def free(self: Queries, attack: object, loss: Tensor | None = None) -> Attacked:
            self.forwards = (self.forwards - 1).clamp_min(0)
            return result(self, attack, loss)

        monkeypatch.setattr(Queries, "result", free)
    with pytest.raises(AssertionError):
        test_attacks_keep_to_the_rules()


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_an_example_does_not_depend_on_its_batch(attack: Attack) -> None:
    model, x, y = curved(), inputs(6), torch.tensor([0, 1, 2, 0, 1, 2])
    threat = Threat("L2", 0.3)
    whole = attack(model, x, y, threat=threat, rng=Stream(1))
    part = attack(model, x[:2], y[:2], threat=threat, rng=Stream(1))
    assert whole.success.any()
    assert torch.allclose(whole.adversarial[:2], part.adversarial, atol=1e-9)
    assert torch.equal(whole.forwards[:2], part.forwards)
    assert torch.equal(whole.backwards[:2], part.backwards)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_the_stream_decides(attack: Attack) -> None:
    """The same stream gives the same answer; the caller's model and torch's own generator stay as they were."""
    model, x, y = curved(), inputs(4), torch.tensor([0, 1, 2, 0])
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    runs = [attack(model, x, y, threat=Threat("Linf", 0.2), rng=Stream(s)) for s in (3, 3)]
    assert torch.equal(runs[0].adversarial, runs[1].adversarial)
    assert torch.equal(runs[0].distance, runs[1].distance)
    if runs[0].loss is not None and runs[1].loss is not None:
        assert torch.equal(runs[0].loss.nan_to_num(7), runs[1].loss.nan_to_num(7))
    assert torch.equal(torch.get_rng_state(), state)
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)
        assert p.grad is None


def starts_of(seed: int) -> Tensor:
    model = Recorder(curved())
    PGD(steps=1, restarts=2)(
        model, inputs(2), model.base(inputs(2)).argmax(1), threat=Threat("Linf", 1e-3), rng=Stream(seed)
    )
    return torch.cat([model.seen[1], model.seen[3]])


def test_starts_differ_between_streams_examples_and_restarts() -> None:
    deltas = [*(starts_of(0) - inputs(2).repeat(2, 1)), *(starts_of(1) - inputs(2).repeat(2, 1))]
    assert len({tuple(d.tolist()) for d in deltas}) == 8


COSTS = [
    (FGSM(), 2, 1),
    (FGSM(random_start=True), 3, 1),
    (PGD(steps=5, random_start=False), 6, 5),
    (PGD(steps=5), 7, 5),
    (PGD(steps=5, restarts=3, early_stop=False), 19, 15),
    (RandomNoise(draws=10, chunk=4), 11, 0),
    (Transfer(curved(seed=7), PGD(steps=5), "another"), 3, 0),
]


@pytest.mark.parametrize(("attack", "forwards", "backwards"), COSTS, ids=str)
def test_costs_are_exact(attack: Attack, forwards: int, backwards: int) -> None:
    model, x = curved(), inputs(3)
    y = model(x).argmax(1)
    found = attack(model, x, y, threat=Threat("Linf", 1e-6), rng=Stream(0))
    assert not found.success.any()
    assert found.forwards.tolist() == [forwards] * 3
    assert found.backwards.tolist() == [backwards] * 3
    if found.loss is not None:
        assert found.loss.shape == (3, backwards)
        assert torch.isfinite(found.loss).all()


@pytest.mark.parametrize("early_stop", [True, False])
def test_what_is_misclassified_already_leaves_at_once(early_stop: bool) -> None:
    model, x = curved(), inputs(3)
    y = model(x).argmax(1)
    y[1] = (y[1] + 1) % 3
    found = PGD(steps=5, early_stop=early_stop)(model, x, y, threat=Threat("Linf", 1e-6), rng=Stream(0))
    assert found.success.tolist() == [False, True, False]
    assert float(found.distance[1]) == 0.0
    assert found.forwards.tolist() == [7, 1, 7]
    assert found.backwards.tolist() == [5, 0, 5]
    assert found.loss is not None
    assert torch.isnan(found.loss[1]).all()


def test_early_stop_saves_queries_and_going_on_finds_nearer_ones() -> None:
    model, x = curved(), inputs(6)
    y = model(x).argmax(1)
    stop, on = (
        PGD(steps=10, restarts=3, early_stop=e)(model, x, y, threat=Threat("L2", 1.0), rng=Stream(0))
        for e in (True, False)
    )
    assert stop.success.any()
    assert torch.equal(stop.success, on.success)
    assert (on.distance <= stop.distance).all()
    assert (on.distance < stop.distance).any()
    assert (stop.forwards[stop.success] < on.forwards[stop.success]).all()


@pytest.mark.parametrize("step", ["steepest", "sign", "normalized", "momentum", "adam"])
@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_and_restarts_are_never_worse(norm: Norm, step: pgd.StepName) -> None:
    """For one step size a longer run contains the shorter one, example by example."""
    model, x = curved(), inputs(8)
    y = model(x).argmax(1)
    eps = {"L1": 0.8, "L2": 0.4, "Linf": 0.2}[norm]

    def nearest(steps: int, restarts: int) -> Tensor:
        attack = PGD(steps, step_size=eps / 10, restarts=restarts, step=step, early_stop=False)
        return attack(model, x, y, threat=Threat(norm, eps), rng=Stream(0)).distance

    few, many, twice = nearest(4, 1), nearest(12, 1), nearest(12, 2)
    assert (many <= few).all()
    assert (twice <= many).all()
    assert torch.isfinite(twice).any()


def test_the_trace_is_the_objective_after_each_step() -> None:
    model, x = Recorder(curved()), inputs(3)
    y = model.base(x).argmax(1)
    found = PGD(steps=4, loss="margin")(model, x, y, threat=Threat("L2", 1e-4), rng=Stream(0))
    logits = torch.stack([model.base(z) for z in model.seen[2:]], dim=1)  # behind x itself and the start
    rival = logits.scatter(2, y[:, None, None].expand(3, 4, 1), -torch.inf).amax(2)
    expected = rival - logits.gather(2, y[:, None, None].expand(3, 4, 1))[..., 0]
    assert found.loss is not None
    assert torch.allclose(found.loss, expected.float())
    assert (found.loss.diff(dim=1) >= -1e-6).all()  # a small ball, where the model is nearly affine


def test_vanishing_gradients_do_not_stop_a_step() -> None:
    """Gradients of 1e-30 have a direction like any others."""

    class Faint(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return affine(2, (6,))(x.float()) * 1e-30

    model, x = Faint().eval(), inputs(4).float()
    y = model(x).argmax(1)
    eps = 1.01 * float(affine(2, (6,)).distance(x).max())
    attack = PGD(steps=10, loss="margin", random_start=False)
    assert attack(model, x, y, threat=Threat("L2", eps, box=None), rng=Stream(0)).success.all()


def test_rounding_costs_no_counterexample() -> None:
    """In float32 x + 1/255 may be farther than 1/255 by more than a millionth; anything beyond rounding is refused."""
    model = affine(2, (50,))
    x = torch.rand(20, 50, generator=torch.Generator().manual_seed(0))
    for factor, kept in ((1.0, True), (1.001, False)):
        queries = Queries(model, x, torch.zeros(20, dtype=torch.int64), Threat("Linf", 1 / 255, box=None))
        queries.keep(x + factor / 255, torch.ones(20, dtype=torch.bool), torch.arange(20))
        assert torch.equal(queries.success, torch.full((20,), kept))


def test_one_example_may_have_several_inputs_in_a_query() -> None:
    model = affine(2, (3,))
    x = torch.zeros(2, 3)
    wrong = 1 - model(x).argmax(1)  # everything is a success
    queries = Queries(model, x, wrong, Threat("Linf", 1.0, box=None))
    z = torch.tensor([0.03, 0.02, 0.01, 0.025, 0.015])[:, None].expand(5, 3)
    queries.logits(z, torch.tensor([1, 0, 1, 0, 1]))
    assert queries.forwards.tolist() == [2, 3]
    assert queries.distance.tolist() == pytest.approx([0.02, 0.01])
    assert torch.equal(queries.best, z[[1, 2]])


@pytest.mark.parametrize("norm", NORMS)
def test_noise_is_uniform_in_the_ball(norm: Norm) -> None:
    """|delta| / eps to the power d is uniform on (0, 1): its mean is 1/2 within six standard errors."""
    d, n = 3, 4000
    delta = uniform_in_ball(torch.zeros(n, d, dtype=torch.float64), Threat(norm, 0.7), Stream(5).generator())
    share = (norm_of(delta, norm) / 0.7) ** d
    assert float(share.max()) <= 1.0
    assert abs(float(share.mean()) - 0.5) < 6 * (1 / 12 / n) ** 0.5
    assert abs(float(share.var()) - 1 / 12) < 6 * (1 / 180 / n) ** 0.5
    # Every coordinate has the same spread, and no side is preferred.
    spread = {"Linf": 1 / 3, "L2": 1 / 5, "L1": 1 / 10}[norm] * 0.7**2  # E z_1^2; 2 / ((d + 1)(d + 2)) in L1
    assert torch.allclose(delta.square().mean(0), torch.full((d,), spread, dtype=torch.float64), rtol=0.12)
    assert (delta.mean(0).abs() < 6 * (spread / n) ** 0.5).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_survives_the_end_of_its_uniform_draws(
    norm: Norm, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`uniform_(-1, 1)` is -1 once in 2^24 float32 draws; L1 takes the logarithm of its distance from 1."""
    draw = Tensor.uniform_

    def with_an_end(self: Tensor, *args: float, **options: torch.Generator) -> Tensor:
        draw(self, *args, **options)
        self.view(-1)[1] = -1.0
        return self

    monkeypatch.setattr(Tensor, "uniform_", with_an_end)
    delta = uniform_in_ball(torch.zeros(5, 3, dtype=dtype), Threat(norm, 0.7), Stream(5).generator())
    assert torch.isfinite(delta).all()
    assert (norm_of(delta, norm) <= 0.7 * (1 + 1e-6)).all()


def test_corners_are_corners() -> None:
    model, x = Recorder(curved()), inputs(2)
    y = model.base(x).argmax(1)
    RandomNoise(draws=6, corners=True, chunk=6)(model, x, y, threat=Threat("Linf", 0.01, box=None), rng=Stream(0))
    deltas = torch.cat(model.seen[1:]) - x.repeat_interleave(6, dim=0)
    assert torch.allclose(deltas.abs(), torch.full_like(deltas, 0.01), rtol=1e-9)
    with pytest.raises(InputError, match="need an Linf threat for corners; got L2"):
        RandomNoise(corners=True)(model, x, y, threat=Threat("L2", 0.1), rng=Stream(0))


def test_transfer_from_the_target_itself_is_the_attack() -> None:
    """And its provenance names the surrogate, not its weights."""
    model, x = curved(), inputs(6)
    y = model(x).argmax(1)
    inner = PGD(steps=5)
    direct = inner(model, x, y, threat=Threat("L2", 0.5), rng=Stream(0))
    carried = Transfer(model, inner, "itself")(model, x, y, threat=Threat("L2", 0.5), rng=Stream(0))
    assert direct.success.any()
    assert torch.equal(carried.success, direct.success)
    assert torch.equal(carried.distance, direct.distance)
    assert repr(carried.attack) == f"Transfer(attack={inner!r}, name='itself')"


def test_transfer_stretches_what_barely_crossed() -> None:
    """A surrogate whose boundary comes earlier gives the direction; the whole budget crosses the target's as well."""
    target = affine(2, (6,))
    w = (target.linear.weight[1] - target.linear.weight[0]).detach()
    x = inputs(4).float()
    surrogate = affine(2, (6,))
    gap = (target(x)[:, 1] - target(x)[:, 0]).detach()
    y = target(x).argmax(1)
    keep = y == y[0]
    x, y, gap = x[keep], y[keep], gap[keep]
    with torch.no_grad():
        surrogate.linear.bias[1] -= 0.5 * gap.abs().min() * gap[0].sign()
    eps = 1.05 * float(gap.abs().max() / w.norm())
    attack = Transfer(surrogate, PGD(steps=30, random_start=False), "a shifted copy")
    assert attack(target, x, y, threat=Threat("L2", eps, box=None), rng=Stream(0)).success.all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(steps=0), "need an integer steps >= 1; got 0"),
        (lambda: PGD(restarts=0), "need an integer restarts >= 1; got 0"),
        (lambda: PGD(step_size=0.0), "need a finite step_size > 0, or None; got 0.0"),
        (lambda: PGD(step="newton"), "need a step among steepest, sign, normalized, momentum, adam; got 'newton'"),  # pyright: ignore
        (lambda: PGD(loss="hinge"), "need a loss among cross_entropy, margin, dlr; got 'hinge'"),  # pyright: ignore
        (
            lambda: PGD(restarts=2, random_start=False),
            "need restarts = 1 without a random start, all being the same; got 2",
        ),
        (lambda: FGSM(loss="hinge"), "need a loss among cross_entropy, margin, dlr; got 'hinge'"),  # pyright: ignore
        (lambda: RandomNoise(draws=0), "need an integer draws >= 1; got 0"),
        (lambda: RandomNoise(chunk=0), "need an integer chunk >= 1; got 0"),
        (lambda: Transfer(curved(), FGSM(), ""), "need a name for the surrogate, its provenance; got ''"),
    ],
)
def test_hyperparameters_are_checked(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("attack", [PGD(steps=1), FGSM(), RandomNoise(draws=1)], ids=str)
def test_misuse_is_refused(attack: Attack) -> None:
    x, y = inputs(2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        attack(curved().train(), x, y, threat=Threat("L2", 0.1), rng=Stream(0))
    with pytest.raises(InputError, match="need inputs in"):
        attack(curved(), x + 1, y, threat=Threat("L2", 0.1), rng=Stream(0))
    if not isinstance(attack, FGSM):
        with pytest.raises(InputError, match="L0"):
            attack(curved(), x, curved()(x).argmax(1), threat=Threat("L0", 1), rng=Stream(0))


def test_inputs_at_a_face_that_float32_rounds_outwards_are_in_the_box() -> None:
    """float32(2.8215) > 2.8215: pixels divided by a standard deviation, at the face of MNIST's box."""
    box = (-0.4242, 2.8215)
    x = torch.tensor([list(box), [box[1], box[1]]])
    assert float(x.max()) > box[1]
    model = affine(2, (2,))
    found = PGD(steps=3)(model, x, model(x).argmax(1), threat=Threat("Linf", 10.0, box=box), rng=Stream(0))
    assert found.success.any()
    for edge, away in ((box[0], -torch.inf), (box[1], torch.inf)):
        past = torch.tensor([edge, 1.0]).nextafter(torch.tensor(away))[None]
        past[0, 1] = 1.0
        with pytest.raises(InputError, match=re.escape("need inputs in [-0.4242, 2.8215]; got [")):
            PGD()(model, past, torch.tensor([0]), threat=Threat("Linf", 0.1, box=box), rng=Stream(0))
