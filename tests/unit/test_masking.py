"""Networks masked on purpose are flagged by the checks that should see it, and honest ones by none."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from analysis.attacks import FGSM, PGD, Attacked
from analysis.attacks.losses import log_odds
from analysis.commands.masking import masking
from analysis.masking import MaskingReport, masking_report
from analysis.masking_attacks import Bench, Effort, Run, Traced, WhiteBox, run_white_box, unbounded
from analysis.masking_checks import ATHALYE, AUTOATTACK, CARLINI, INDICATORS, LOST, QUESTIONS, Check, answer, share
from analysis.masking_comparisons import (
    check_converged,
    check_eps,
    check_finished,
    check_iterative,
    check_silent,
    check_targeted,
    check_transfer,
    check_unbounded,
    unfinished,
)
from analysis.masking_model import (
    GradientOrZero,
    check_classes,
    check_deterministic,
    check_gradients,
    check_logits,
    check_stable,
    check_static,
    input_gradient,
)
from certify import InputError, Stream, Threat
from certify.campaign.cli import make_app
from certify.threat import Norm
from paper_repro.data import digits
from tests.classifiers import Affine, affine
from tests.masked_networks import (
    Detached,
    Noisy,
    Probabilities,
    Purified,
    Quantised,
    Resized,
    Saturated,
    Shattered,
    nearest_centroid,
)
from tests.networks import digits_linear

TRAIN, TEST = digits("train"), digits("test")
BASE = nearest_centroid(TRAIN.x, TRAIN.y, 10)
X, Y = TEST.x[:20], TEST.y[:20]
EFFORT = Effort(steps=20, restarts=1, queries=100, hops=1, draws=128)
# At these budgets gradients break about half of the examples.
LINF, L2, L1 = Threat("Linf", 0.2), Threat("L2", 1.0), Threat("L1", 3.0, box=None)


def report(model: nn.Module, threat: Threat = LINF, **options: Any) -> MaskingReport:
    return masking_report(model.eval(), X, Y, threat=threat, rng=Stream(0), effort=EFFORT, **options)


def names(checks: tuple[Check, ...]) -> set[str]:
    return {check.name for check in checks}


def verdict(result: MaskingReport, name: str) -> str:
    return next(check.verdict for check in result.checks if check.name == name)


# --- whole reports ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threat", [LINF, L2, L1])
def test_an_affine_network_passes_all_that_applies(threat: Threat) -> None:
    surrogate = nearest_centroid(TRAIN.x[::2], TRAIN.y[::2], 10)
    before = torch.get_rng_state()
    result = report(BASE, threat, surrogate=surrogate)
    assert torch.equal(torch.get_rng_state(), before)
    assert not result.flagged, result
    skipped = {"white box beats black box", "untargeted keeps up with targeted"} if threat.norm == "L1" else set()
    assert names(tuple(c for c in result.checks if c.verdict == "inconclusive")) == skipped


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_worst_case_of_a_binary_affine_network_is_its_closed_form(norm: Norm) -> None:
    """No box, no image, two classes: SimBA in place of Square, no DLR, and robust accuracy known exactly."""
    model = affine(2, (12,), seed=3)
    x = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    w = model.linear.weight.detach().double()
    gap = (model(x)[:, 0] - model(x)[:, 1]).detach().abs().double()
    distance = gap / ((w[0] - w[1]).norm() if norm == "L2" else (w[0] - w[1]).abs().sum())
    # Half way between two distances, the two farthest apart: no attack here has to be exact.
    ranked = distance.sort().values
    gaps = (ranked[1:] - ranked[:-1])[14:25]
    below = 14 + int(gaps.argmax())
    threat = Threat(norm, float((ranked[below] + ranked[below + 1]) / 2), box=None)
    result = masking_report(model, x, y, threat=threat, rng=Stream(0), effort=EFFORT)
    assert not result.flagged, result
    assert (result.n, result.correct, result.robust) == (40, 40, 40 - below - 1)
    assert any("SimBA" in rung.attack for rung in result.rungs)
    inconclusive = {c.name for c in result.checks if c.verdict == "inconclusive"}
    assert inconclusive == {"enough classes", "untargeted keeps up with targeted", "white box beats transfer"}


NO_GRADIENT = {"gradients", "unbounded succeeds", "white box beats black box", "success grows with eps"}


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (Saturated, {"gradients", "unbounded succeeds", "untargeted keeps up with targeted"}),
        (Quantised, NO_GRADIENT),
        (Detached, NO_GRADIENT),
        (Shattered, NO_GRADIENT),
        (Noisy, {"deterministic", "stable loss", "nothing lost on the way"}),
        (Resized, {"deterministic", "stable loss"}),
        (Probabilities, {"logits"}),
        (Purified, {"static"}),
    ],
)
def test_masked_networks_are_flagged(make: Callable[[nn.Module], nn.Module], seen: set[str]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        result = report(make(BASE))
    assert seen <= names(result.flagged), result
    # What masks one thing is not accused of another.
    for name in {"deterministic", "logits", "static"} - seen:
        assert verdict(result, name) == "passes"


def test_masking_does_not_hide_the_worst_case() -> None:
    """The black box still breaks the staircase: the report's worst case is below what gradients found."""
    result = report(Quantised(BASE), L2)
    by_gradients = max(
        r.broken for r in result.rungs if r.attack.startswith("PGD") and r.backwards and " at eps =" not in r.attack
    )
    assert result.correct - result.robust > by_gradients


def test_what_is_printed_says_everything() -> None:
    result = report(Probabilities(BASE))
    text = str(result)
    assert f"{len(result.flagged)} of 16 checks flagged; Linf eps = 0.2, box (0.0, 1.0), seed 0, {EFFORT!r}" in text
    assert f"clean accuracy {share(result.correct, 20)}" in text
    for check in result.checks:
        assert f"| {check.number} | {check.name} | {check.verdict} | {check.evidence} |" in text
    for check in result.flagged:
        assert f"* {check.number}, {check.name}: {check.advice}." in text
        assert check.advice
    for rung in result.rungs:
        assert f"* {rung.broken} of {rung.attacked} by {rung.attack}; {rung.forwards} forward" in text
    assert "step_size=0.025" in text  # 2.5 * 0.2 / 20, as a number


def test_the_same_stream_gives_the_same_report() -> None:
    model = affine(4, (1, 5, 5), seed=2)
    x = torch.rand(12, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    small = Effort(20, 1, 20, 1, 20)
    first, second = (masking_report(model, x, y, threat=LINF, rng=Stream(5), effort=small) for _ in range(2))
    assert first == second


def test_misclassified_examples_are_counted_and_not_attacked() -> None:
    wrong = Y.clone()
    right = BASE(X).argmax(1)
    wrong[:10] = (right[:10] + 1) % 10
    wrong[10:] = right[10:]
    result = masking_report(BASE, X, wrong, threat=LINF, rng=Stream(0), effort=Effort(20, 1, 20, 1, 20))
    assert (result.n, result.correct) == (20, 10)
    assert max(rung.attacked for rung in result.rungs) == 10


def test_refuses() -> None:
    for threat in (Threat("L0", 1.0), Threat("Linf", 0.0)):
        with pytest.raises(InputError, match="need an Linf, L2 or L1 threat with eps > 0; got Threat"):
            report(BASE, threat)
    with pytest.raises(InputError, match="need an example that is classified correctly; got none of 20"):
        masking_report(BASE, X, (BASE(X).argmax(1) + 1) % 10, threat=LINF, rng=Stream(0))
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        masking_report(Saturated(BASE).train(), X, Y, threat=LINF, rng=Stream(0))
    BASE.eval()
    for field in ("steps", "restarts", "queries", "hops", "draws"):
        with pytest.raises(InputError, match=f"need an integer {field} >= 1; got 0"):
            replace(EFFORT, **{field: 0})
    with pytest.raises(InputError, match="need steps >= 20, or the last 10 are most of them; got 19"):
        Effort(steps=19)


# --- the list -----------------------------------------------------------------------------------------------------


def test_the_list_holds_every_sign_of_every_source() -> None:
    """Five signs of Athalye, six flags, six indicators, nine items of Carlini; numbered in order."""
    sources = [source for _, given, _ in QUESTIONS.values() for source in given]
    for who, count in ((ATHALYE, 5), (AUTOATTACK, 6), (INDICATORS, 6), (CARLINI, 9)):
        assert sum(source.startswith(who) for source in sources) == count
    assert [answer(name, None, "").number for name in QUESTIONS] == list(range(1, 17))
    assert [c.name for c in report(BASE).checks] == list(QUESTIONS)


def test_advice_comes_with_a_flag_only() -> None:
    assert answer("logits", True, "e").advice
    assert answer("logits", False, "e").advice == ""
    assert [answer("logits", f, "e").verdict for f in (True, False, None)] == ["flagged", "passes", "inconclusive"]


def test_intervals_are_exact_and_rounded_outwards() -> None:
    assert share(0, 100) == "0/100 = 0.000 [0.000, 0.037]"  # 1 - 0.025^(1/100) = 0.03622
    assert share(100, 100) == "100/100 = 1.000 [0.963, 1.000]"


# --- the model ----------------------------------------------------------------------------------------------------


class Drifting(nn.Module):
    """Logits that turn by an angle at every other call."""

    def __init__(self, angle: float) -> None:
        super().__init__()
        self.angle, self.calls = angle, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        angle = torch.tensor(self.angle * (self.calls % 2), dtype=torch.float64)
        return 5 * torch.stack([angle.cos(), angle.sin()]).expand(len(x), 2)


@pytest.mark.parametrize(("angle", "flagged"), [(0.0, False), (0.9e-4, False), (1.1e-4, True)])
def test_determinism_has_the_published_threshold(angle: float, flagged: bool) -> None:
    """Unit vectors at a small angle are as far apart as the angle."""
    check = check_deterministic(Drifting(angle), torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))
    assert (check.verdict == "flagged") == flagged


@pytest.mark.parametrize(
    ("rows", "flagged"),
    [
        ([[0.2, 0.8], [1.0, 0.0]], True),
        ([[0.2, 0.8], [0.9, 0.2]], False),  # a sum off
        ([[0.2, 0.8], [1.5, -0.5]], False),  # outside
        ([[0.2, 0.8], [1.000005, -0.000005]], True),  # rounding
    ],
)
def test_probabilities_are_told_from_logits(rows: list[list[float]], flagged: bool) -> None:
    assert (check_logits(torch.tensor(rows)).verdict == "flagged") == flagged


def test_gradient_calls_at_inference_are_seen_and_the_profiler_is_put_back() -> None:
    def mine(*_: object) -> None:
        pass

    before = sys.getprofile()
    sys.setprofile(mine)
    try:
        assert check_static(Purified(BASE), X).verdict == "flagged"
        assert check_static(BASE, X).verdict == "passes"
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(before)


def test_zero_missing_and_undefined_gradients_are_seen() -> None:
    right = BASE(X).argmax(1) == Y
    assert check_gradients(BASE, X[right], Y[right], 10).verdict == "passes"
    assert "interrupted" in check_gradients(Detached(BASE), X, Y, 10).evidence
    assert "zero for 20/20" in check_gradients(Quantised(BASE), X, Y, 10).evidence
    assert "not finite for 20" in check_gradients(Shattered(BASE), X, Y, 10).evidence
    # One example of many is enough: the second of these inputs is saturated.
    model = Affine(torch.tensor([[1.0], [-1.0]]), torch.zeros(2)).eval()
    check = check_gradients(model, torch.tensor([[1.0], [1000.0]]), torch.tensor([0, 0]), 2)
    assert check.verdict == "flagged"
    assert "cross_entropy: zero for 1/2" in check.evidence


def test_zero_in_place_of_gradients_that_are_not_there() -> None:
    for masked in (Detached(BASE), Shattered(BASE)):
        model = GradientOrZero(masked.eval())
        assert torch.equal(model(X), BASE(X))
        gradient = input_gradient(model, X, Y, "margin")
        assert gradient is not None
        assert torch.equal(gradient, torch.zeros_like(X))
    ours, theirs = input_gradient(GradientOrZero(BASE), X, Y, "margin"), input_gradient(BASE, X, Y, "margin")
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)


def test_inference_mode_inside_the_forward_pass() -> None:
    class Inference(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                return BASE(x)

    assert check_gradients(Inference(), X, Y, 10).verdict == "flagged"
    gradient = input_gradient(GradientOrZero(Inference().eval()), X, Y, "cross_entropy")
    assert gradient is not None
    assert not gradient.any()


@pytest.mark.parametrize(("classes", "text"), [(2, "the DLR losses are"), (3, "the targeted DLR loss is")])
def test_too_few_classes(classes: int, text: str) -> None:
    check = check_classes(classes)
    assert check.verdict == "inconclusive"
    assert text in check.evidence
    assert check_classes(4).verdict == "passes"


@pytest.mark.parametrize(("distance", "flagged"), [(0.1, False), (0.05, True)])
def test_stability_is_relative_to_the_margin(distance: float, flagged: bool) -> None:
    """On a line the margin is the distance to the boundary, and a uniform step of +-4/255 changes it by 2/255 on
    average: 7.8 % at 0.1, 15.7 % at 0.05. The mean of 100 times 30 such steps errs by under 2 % of itself."""
    model = Affine(torch.tensor([[0.0], [1.0]]), torch.zeros(2)).eval()
    x, y = torch.full((30, 1), distance), torch.ones(30, dtype=torch.int64)
    check = check_stable(model, x, y, LINF, Stream(0))
    assert (check.verdict == "flagged") == flagged
    mean = float(check.evidence.split("margin ")[1].split()[0])
    assert abs(mean / (2 / 255 / distance) - 1) < 0.1


# --- the comparisons ----------------------------------------------------------------------------------------------


def bench(n: int = 100, m: int | None = None) -> Bench:
    m = n if m is None else m
    model = Affine(torch.tensor([[0.0], [1.0]]), torch.zeros(2)).eval()
    return Bench(model, torch.full((m, 1), 0.5), torch.ones(m, dtype=torch.int64), n, Threat("Linf", 0.1), Stream(0))


def run(broken: int, m: int = 100, loss: Tensor | None = None, steps: int = 20, first: int = 0) -> Run:
    """A run that broke `broken` examples from number `first` on, and whose losses are given."""
    hit = torch.zeros(m, dtype=torch.bool)
    hit[first : first + broken] = True
    attack = PGD(steps)
    counts = torch.zeros(m, dtype=torch.int64)
    distance = torch.where(hit, 0.1, torch.inf).double()
    result = Attacked(torch.ones(m, 1), hit, distance, "Linf", loss, counts, counts, attack, Threat("Linf", 0.1))
    return Run("made up", hit, hit, m, result)


def white(**runs: Run) -> WhiteBox:
    plain = {name: run(0) for name in ("one", "base", "longer", "again", "margin", "nearest")}
    return WhiteBox(**{**plain, "targeted": None, **runs})


def odds(ends: float, m: int = 100, steps: int = 20) -> Tensor:
    """(m, steps) log-odds of paths that jump to `ends` at the start."""
    return torch.full((m, steps), ends)


def test_one_step_may_win_on_two_examples_of_a_thousand() -> None:
    assert LOST == 0.002
    for only, flagged in ((2, False), (3, True)):
        check = check_iterative(bench(1000), white(one=run(only, 1000), base=run(0, 1000)))
        assert (check.verdict == "flagged") == flagged
    # What both break does not count.
    assert check_iterative(bench(), white(one=run(50), base=run(50))).verdict == "passes"


@pytest.mark.parametrize(
    ("changed", "flagged"),
    [
        ({}, False),
        ({"longer": run(1, loss=odds(-1.0), steps=20)}, True),  # more broken
        ({"again": run(1, loss=odds(-1.0))}, True),
        ({"base": run(1, loss=odds(-1.0))}, True),  # fewer broken with more steps
        ({"longer": run(0, loss=odds(-0.98))}, False),  # of a gain of 1.5, 0.02 is 1.3 %
        ({"longer": run(0, loss=odds(-0.9))}, True),  # 0.1 of 1.6 is 6.3 %
        ({"again": run(0, loss=odds(-0.9))}, True),
    ],
)
def test_convergence_in_success_and_in_loss(changed: dict[str, Run], flagged: bool) -> None:
    """At the input the log-odds of an error are -(1 * 0.5 - 0) = -0.5; shift the logits so that they are -2.5."""
    model = Affine(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 2.0])).eval()
    table = bench()
    table.model = model
    plain = {name: run(0, loss=odds(-1.0)) for name in ("base", "longer", "again")}
    assert (check_converged(table, white(**{**plain, **changed})).verdict == "flagged") == flagged


def test_nothing_left_to_converge() -> None:
    everyone = {name: run(100, loss=odds(1.0)) for name in ("base", "longer", "again")}
    assert check_converged(bench(), white(**everyone)).verdict == "passes"
    assert "no example left" in check_finished(bench(), white(**everyone)).evidence


@pytest.mark.parametrize(
    ("path", "growing"),
    [
        ([0.0] * 20, False),
        ([float(i) for i in range(20)], True),
        ([0.0] * 10 + [1.0] * 10, False),  # nine steps of nothing: the jump came just before
        ([0.0] * 11 + [1.0] * 9, True),
        ([0.0] + [0.96] * 10 + [1.0] * 9, False),  # 4 %
        ([0.0] + [0.94] * 10 + [1.0] * 9, True),  # 6 %
        ([0.0] + [1.0] * 9 + [0.5, 0.9] * 5, False),  # it fell and came back: no progress
    ],
)
def test_unfinished_paths(path: list[float], growing: bool) -> None:
    assert unfinished(torch.tensor([path])).tolist() == [growing]


def test_only_survivors_must_have_finished() -> None:
    growing = torch.linspace(0.1, 1.0, 20).repeat(100, 1)
    assert check_finished(bench(), white(longer=run(0, loss=growing))).verdict == "flagged"
    growing[1:] = 0.5
    assert check_finished(bench(), white(longer=run(1, loss=growing))).verdict == "passes"
    assert check_finished(bench(), white(longer=run(0, loss=growing))).verdict == "flagged"


class Ravine(nn.Module):
    """Two classes; the margin falls along a narrow ravine, in which steps of one length zigzag and get nowhere."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        margin = 0.75 - 0.5 * x[:, 0] + 2.5 * (x[:, 1] ** 2 + 1e-6).sqrt()
        return self.scale * torch.stack([torch.zeros_like(margin), margin], dim=1)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_the_scale_of_logits_moves_no_verdict_on_convergence(scale: float) -> None:
    """At 100 the odds of an error are about exp(-80): a float32, but nothing that 1 + odds tells from 1."""
    model, x, y = Ravine(scale).eval(), torch.zeros(40, 2), torch.ones(40, dtype=torch.int64)
    table = Bench(model, x, y, 40, Threat("L2", 0.04, box=None), Stream(0))
    runs = run_white_box(table, Effort(20, 1, 20, 1, 20), classes=2)
    assert not runs.broken.any()
    late, finished = check_converged(table, runs), check_finished(table, runs)
    assert (late.verdict, finished.verdict) == ("flagged", "flagged")
    assert f"{-0.7525 * scale:.4g} at the input" in late.evidence


def test_without_a_gradient_all_of_a_gain_is_chance() -> None:
    """At 1000 the gradient of the cross-entropy is 0: starts stay where they are, and only more of them help."""
    model, x, y = Ravine(1000.0).eval(), torch.zeros(40, 2), torch.ones(40, dtype=torch.int64)
    table = Bench(model, x, y, 40, Threat("L2", 0.04, box=None), Stream(0))
    late = check_converged(table, run_white_box(table, Effort(20, 1, 20, 1, 20), classes=2))
    assert late.verdict == "flagged"
    assert "of the whole gain 0.00% come with twice the steps, 100.00% with twice the restarts" in late.evidence


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.2), ("L1", 0.3)])
def test_recording_log_odds_moves_no_attack(norm: Norm, eps: float) -> None:
    """The same points at the same cost, bit for bit; the log-odds are the cross-entropy's where that has them."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(affine(16, (6,)), nn.Tanh(), affine(4, (16,), seed=1)).eval()
    x = torch.rand(12, 6, generator=generator)
    y: Tensor = model(x).argmax(1)
    pgd, threat = PGD(7, restarts=3, early_stop=False), Threat(norm, eps)
    plain = pgd(model, x, y, threat=threat, rng=Stream(2))
    traced = Traced(pgd)(model, x, y, threat=threat, rng=Stream(2))
    assert 0 < int(plain.success.sum()) < 12
    for field in ("adversarial", "success", "distance", "forwards", "backwards"):
        assert torch.equal(getattr(traced, field), getattr(plain, field)), field
    assert (traced.attack, traced.threat) == (pgd, threat)
    assert plain.loss is not None
    assert traced.loss is not None
    assert torch.allclose(traced.loss, plain.loss.double().expm1().log().float(), rtol=1e-4, atol=1e-4)


def test_log_odds_are_those_of_the_points_reached() -> None:
    """One step of a straight line, from a known start: scaled by 1000, where the cross-entropy is 0."""
    model = Affine(torch.tensor([[0.0], [1000.0]]), torch.zeros(2)).eval()
    x, y = torch.full((1, 1), 0.5), torch.ones(1, dtype=torch.int64)
    found = Traced(PGD(1))(model, x, y, threat=Threat("Linf", 1e-9), rng=Stream(0))
    assert found.loss is not None
    assert found.loss.tolist() == [[-500.0]]
    assert log_odds(model(x), y).tolist() == [500.0]
    for wrong in (PGD(loss="margin"), PGD(random_start=False), PGD(step_size=0.1)):
        with pytest.raises(InputError, match="need PGD on the cross-entropy, from random starts, with step_size=None"):
            Traced(wrong)


def test_an_error_on_the_path_must_be_returned() -> None:
    margins = torch.full((100, 20), -1.0)
    assert check_silent(bench(), white(margin=run(0, loss=margins))).verdict == "passes"
    margins[3, 7] = 0.5
    check = check_silent(bench(), white(margin=run(0, loss=margins)))
    assert check.verdict == "flagged"
    assert "1 with an error on the path and none returned" in check.evidence
    # What is returned is class 1 as the labels are: no error.
    check = check_silent(bench(), white(margin=run(5, loss=torch.full((100, 20), -1.0))))
    assert check.verdict == "flagged"
    assert "5 of 5 returned errors are none" in check.evidence


@pytest.mark.parametrize(
    ("broken", "flagged"),
    [
        ([1, 5, 10, 40, 99, 100, 100, 100], False),
        ([1, 5, 4, 40, 99, 100, 100, 100], True),  # a fall
        ([7] * 8, True),  # flat
        ([1, 5, 10, 20, 30, 40, 60, 100], True),  # 40 % right where all can be grey, chance is 10 %
        ([100] * 8, False),
    ],
)
def test_success_along_eps(broken: list[int], flagged: bool) -> None:
    table = bench()
    counts = iter(broken)
    table.run = lambda *_, **__: run(next(counts))  # type: ignore[method-assign]
    check = check_eps(table, EFFORT, 10)
    assert (check.verdict == "flagged") == flagged
    assert "100 at 1;" in check.evidence or broken[0] == 7
    assert next(counts, None) is None


def test_budgets_without_a_bound() -> None:
    x = torch.zeros(2, 3, 4)
    assert unbounded(x, Threat("Linf", 0.1, box=(-1.0, 2.0))).eps == 3.0
    assert unbounded(x, Threat("L2", 0.1)).eps == pytest.approx(12**0.5)
    assert unbounded(x, Threat("L1", 0.1)).eps == pytest.approx(12)
    x[1] = 5.0
    assert unbounded(x, Threat("Linf", 0.1, box=None)).eps == 10.0
    assert unbounded(x[:1], Threat("Linf", 0.1, box=None)).eps == 0.1


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("rows", [1, 3])
def test_one_input_without_a_box_tells_nothing_of_larger_budgets(norm: Norm, rows: int) -> None:
    """No budget is known to hold an error: one that does not is no sign of masking. One that does is none either."""
    model = Affine(2 * torch.eye(4, 3), torch.zeros(4)).eval()
    x = torch.tensor([[1.0, 0.0, 0.0]]).repeat(rows, 1)
    y = torch.zeros(rows, dtype=torch.int64)
    near, far = (
        masking_report(model, x, y, threat=Threat(norm, eps, box=None), rng=Stream(0), effort=EFFORT)
        for eps in (0.01, 4.0)
    )
    assert not near.flagged, near
    assert not far.flagged, far
    for name in ("success grows with eps", "unbounded succeeds"):
        check = next(c for c in near.checks if c.name == name)
        assert check.verdict == "inconclusive"
        assert "without a box and with inputs of one class, no budget is known to hold an error" in check.evidence
        assert verdict(far, name) == "passes"
    assert "eps = 0;" not in str(near)


def test_inputs_of_two_classes_vouch_for_errors_without_a_box() -> None:
    """Each input is an error for the other: gradients that do not get there are flagged, box or no box."""
    model = GradientOrZero(Detached(BASE).eval())
    right = BASE(X).argmax(1) == Y
    table = Bench(model, X[right], Y[right], 20, Threat("L2", 0.1, box=None), Stream(0))
    assert check_unbounded(table, white(), EFFORT).verdict == "flagged"
    table.run = lambda *_, **__: run(7)  # type: ignore[method-assign]
    assert check_eps(table, EFFORT, 10).verdict == "flagged"
    table.y = torch.zeros_like(table.y)
    assert check_eps(table, EFFORT, 10).verdict == "inconclusive"
    counts = iter([7, 4, *[7] * 7])
    table.run = lambda *_, **__: run(next(counts))  # type: ignore[method-assign]
    assert check_eps(table, EFFORT, 10).verdict == "flagged"  # a fall is one in any ball


def test_errors_found_in_larger_balls_count_where_they_lie() -> None:
    """At 0.5, the boundary at 0: an unbounded attack in another norm still tells what lies within 0.6."""
    model = Affine(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -0.25])).eval()
    table = Bench(
        model, torch.tensor([[0.5], [0.95]]), torch.ones(2, dtype=torch.int64), 2, Threat("L1", 0.4), Stream(0)
    )
    found = table.run("far", PGD(40, random_start=False), threat=Threat("L2", 1.0))
    assert found.broken.tolist() == [True, True]
    assert found.within.tolist() == [True, False]  # at distance 0.25 or a step more, and 0.7
    assert table.broken.tolist() == [True, False]
    assert table.rungs[0].attack.endswith("in L2 at eps = 1")


@pytest.mark.parametrize(
    ("targeted", "untargeted", "flagged"),
    [((11, 0), (10, 0), False), ((30, 0), (10, 0), True), ((30, 50), (30, 0), False)],
)
def test_targeted_attacks_must_win_beyond_chance(
    targeted: tuple[int, int], untargeted: tuple[int, int], flagged: bool
) -> None:
    """(broken, from example): 1 more is chance, 20 more and none fewer is not, 30 others are chance."""
    both = white(targeted=run(targeted[0], first=targeted[1]), base=run(untargeted[0], first=untargeted[1]))
    check = check_targeted(bench(), both)
    assert (check.verdict == "flagged") == flagged


def test_a_surrogate_is_tried() -> None:
    """Boundaries at 0.45 and 0.42, inputs at 0.5, a budget of 0.1: what breaks the one breaks the other, stretched."""
    surrogate = Affine(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -0.45])).eval()
    table = bench()
    table.model = Affine(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -0.42])).eval()
    check = check_transfer(table, torch.zeros(100, dtype=torch.bool), surrogate, EFFORT)
    assert check.verdict == "flagged"
    assert "100 of the 100 that attacks with gradients left" in check.evidence
    assert check_transfer(table, torch.ones(100, dtype=torch.bool), surrogate, EFFORT).verdict == "passes"


def test_runs_say_what_they_broke() -> None:
    table = bench()
    none = table.run("none", FGSM(), among=torch.zeros(100, dtype=torch.bool))
    assert (none.among, int(none.broken.sum()), none.result) == (0, 0, None)
    assert str(none) == f"0 of 0 by {FGSM()!r}"


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_the_report(tmp_path: Path) -> None:
    """An affine network passes with status 0, a surrogate taken along; saturated, the same ends with status 1."""
    app = make_app("analysis")
    app.command()(masking)
    network = digits_linear()
    last = network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.copy_(BASE.linear.weight)
        last.bias.copy_(BASE.linear.bias)
    weights = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), weights)
    arguments = ["masking", "--model", "tests.networks:digits_linear", "--data", "paper_repro.data:digits"]
    effort = ["--steps", "20", "--restarts", "1", "--queries", "20", "--hops", "1", "--draws", "20"]
    where = ["--weights", str(weights), "--surrogate", str(weights), "--out", str(tmp_path / "report.md")]
    common = [*arguments, *where, *effort, "--indices", "0:10"]
    done = CliRunner().invoke(app, [*common, "--eps", "0.2"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "0 of 16 checks flagged; Linf eps = 0.2" in done.output
    assert "Transfer(attack=PGD(" in done.output
    assert (tmp_path / "report.md").read_text() == done.output
    # Logits times 1e6: no gradient of the cross-entropy is left.
    with torch.no_grad():
        last.weight.mul_(1e6)
        last.bias.mul_(1e6)
    save_file(network.state_dict(), weights)
    flagged = CliRunner().invoke(app, [*common, "--eps", "0.2"], catch_exceptions=False)
    assert flagged.exit_code == 1
    assert "| 4 | gradients | flagged |" in flagged.output
