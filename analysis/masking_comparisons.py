"""What comparing attacks says about masking."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attack
from analysis.attacks.hop_skip_jump import HopSkipJump
from analysis.attacks.losses import log_odds
from analysis.attacks.pgd import PGD
from analysis.attacks.random_noise import RandomNoise
from analysis.attacks.simba import SimBA
from analysis.attacks.square import Square
from analysis.attacks.transfer import Transfer
from analysis.evaluation import exact_interval
from analysis.masking_attacks import Bench, Effort, Run, WhiteBox, unbounded
from analysis.masking_checks import CONFIDENCE, LAST, LOST, UNFINISHED, Check, answer, share
from certify.binomial import binomial_test
from certify.threat import Norm

_EPS_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_TINY = 1e-30
_NO_ERROR_KNOWN = "without a box and with inputs of one class, no budget is known to hold an error"


def _lost(bench: Bench, broken: Tensor, by: Tensor) -> tuple[int, bool]:
    """How many examples a weaker attack broke that the stronger did not, and whether that is too many."""
    count = int((broken & ~by).sum())
    return count, count > LOST * bench.n


def check_iterative(bench: Bench, white: WhiteBox) -> Check:
    """One step against many."""
    count, flagged = _lost(bench, white.one.broken, white.base.broken)
    return answer("iterative beats one step", flagged, f"{count} only by one step; {white.one}; {white.base}")


def paths(run: Run) -> Tensor:
    """(m, restarts, steps) float64: the log-odds of an error along the paths of `Traced`."""
    result = run.result
    assert result is not None
    assert result.loss is not None
    return result.loss.double().view(len(result.loss), -1, result.attack.steps)


def _reaches_errors(bench: Bench) -> bool:
    """Whether an unbounded budget certainly holds errors: without a box only inputs of other classes vouch for that."""
    return bench.threat.box is not None or len(bench.y.unique()) > 1


def check_converged(bench: Bench, white: WhiteBox) -> Check:
    """Twice the steps, and twice the restarts, in success and in loss."""
    base, longer, again = white.base, white.longer, white.again
    steps, flagged_steps = _lost(bench, longer.broken, base.broken)
    restarts, flagged_restarts = _lost(bench, again.broken, base.broken)
    fewer, flagged_fewer = _lost(bench, base.broken, longer.broken)
    evidence = (
        f"{steps} more and {fewer} fewer broken with twice the steps, {restarts} more with twice the restarts; "
        f"{base}; {longer}"
    )
    flagged = flagged_steps or flagged_restarts or flagged_fewer
    left = ~(base.broken | longer.broken | again.broken)
    if bool(left.any()):
        with torch.no_grad():
            clean = -log_odds(bench.model(bench.x).double(), bench.y).cpu()[left]
        ends = [paths(run)[left, :, -1].amax(1) for run in (base, longer, again)]
        gain = float((ends[0] - clean).mean())
        rises = [float((end - ends[0]).clamp_min(0).mean()) for end in ends[1:]]
        late = [rise / max(max(gain, 0.0) + rise, _TINY) for rise in rises]  # of no gain before, all of it
        evidence += (
            f"; mean log-odds of an error on the {int(left.sum())} unbroken: {float(clean.mean()):.4g} at the input, "
            f"{float(ends[0].mean()):.4g} in the end; of the whole gain {late[0]:.2%} come with twice the steps, "
            f"{late[1]:.2%} with twice the restarts (allowed {UNFINISHED:.0%})"
        )
        flagged |= max(late) > UNFINISHED
    return answer("converged", flagged, evidence)


def unfinished(loss: Tensor) -> Tensor:
    """Whether paths of a loss were still growing at their end.

    Args:
        loss: (n, steps), to be increased.

    Returns: (n,) bool: the largest loss so far grew by more than UNFINISHED of the path's range in the last LAST steps.
    """
    low, high = loss.amin(1, keepdim=True), loss.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    so_far = ((loss - low) / span).cummax(1).values
    return so_far[:, -1] - so_far[:, -LAST] > UNFINISHED


def check_finished(bench: Bench, white: WhiteBox) -> Check:
    """The last losses of the best restart of every example that the longer attack left unbroken."""
    left = ~white.longer.broken
    if not bool(left.any()):
        return answer("optimisation finished", False, f"no example left: {white.longer}")
    restarts = paths(white.longer)[left]
    best = restarts[torch.arange(len(restarts)), restarts[:, :, -1].argmax(1)]
    growing = int(unfinished(best).sum())
    evidence = f"still growing for {share(growing, len(best))} of the unbroken, in {white.longer.name}"
    return answer("optimisation finished", growing > LOST * bench.n, evidence)


def check_silent(bench: Bench, white: WhiteBox) -> Check:
    """Margins along the path against what was returned, and what was returned against the model."""
    result = white.margin.result
    assert result is not None
    assert result.loss is not None
    silent = int(((result.loss > 0).any(1) & ~result.success).sum())
    hit = result.success.to(bench.x.device)
    with torch.no_grad():
        repeats = bench.model(result.adversarial).argmax(1) != bench.y
    gone = int((hit & ~repeats).sum())
    evidence = (
        f"{silent} with an error on the path and none returned; {gone} of {int(hit.sum())} returned errors are none "
        f"when classified again; {white.margin.name}"
    )
    return answer("nothing lost on the way", silent > 0 or gone > LOST * bench.n, evidence)


def check_eps(bench: Bench, effort: Effort, classes: int) -> Check:
    """Success along growing budgets, up to half the box for Linf, where every input can become grey."""
    threat, top = bench.threat, unbounded(bench.x, bench.threat).eps
    grid = {threat.eps * f for f in _EPS_FACTORS if threat.eps * f < top} | {top}
    half = top / 2 if threat.norm == "Linf" and threat.box is not None else None
    grid |= set() if half is None else {half}
    attack = PGD(effort.steps)
    curve: list[tuple[float, int]] = []
    for eps in sorted(grid):
        run = bench.run("eps", attack, threat=replace(threat, eps=eps))
        curve.append((eps, int(run.broken.sum())))
    counts = [count for _, count in curve]
    falls = max((a - b for a, b in pairwise(counts)), default=0)
    flat = counts[-1] <= counts[0] < bench.m
    text = ", ".join(f"{count} at {eps:.4g}" for eps, count in curve)
    evidence = f"broken of {bench.m}: {text}; largest fall {max(falls, 0)}; by {attack!r}, a step of 2.5 eps / steps"
    flagged = falls > LOST * bench.n or (flat and _reaches_errors(bench))
    if flat and not flagged:
        return answer("success grows with eps", None, f"{evidence}; {_NO_ERROR_KNOWN}")
    if half is not None:
        right = bench.m - dict(curve)[half]
        evidence += f"; accuracy at {half:g}: {share(right, bench.n)}, chance {1 / classes:.3f}"
        flagged |= exact_interval(right, bench.n, CONFIDENCE)[0] > 1 / classes
    return answer("success grows with eps", flagged, evidence)


def check_unbounded(bench: Bench, white: WhiteBox, effort: Effort) -> Check:
    """Gradients alone, from the input itself, without a bound; and how far the nearest error found is."""
    # Without a bound all norms allow the same points, but the sparse steps of L1 stop for ever at a coordinate of the
    # largest gradient that has reached the edge of the box: they are taken in L2.
    norm: Norm = "L2" if bench.threat.norm == "L1" else bench.threat.norm
    threat = unbounded(bench.x, replace(bench.threat, norm=norm))
    alone = bench.run("unbounded", PGD(effort.steps, random_start=False), threat=threat)
    assert white.nearest.result is not None
    median = float(white.nearest.result.distance.median())
    left = bench.m - int(alone.broken.sum())
    evidence = (
        f"{share(left, bench.m)} unbroken; {alone}; {white.nearest}, "
        f"median distance {median:.4g} in {bench.threat.norm}"
    )
    if left and not _reaches_errors(bench):
        return answer("unbounded succeeds", None, f"{evidence}; {_NO_ERROR_KNOWN}")
    return answer("unbounded succeeds", left > 0, evidence)


def _black_box(norm: Norm, images: bool, effort: Effort, eps: float) -> list[Attack]:
    if norm == "L1":
        return []
    # A move of SimBA: a coordinate by the whole budget of Linf; for L2 the budget is spent on a hundred coordinates.
    scored = Square(effort.queries) if images else SimBA(effort.queries, eps if norm == "Linf" else eps / 10)
    return [scored, HopSkipJump(effort.hops)]


def _missed(bench: Bench, name: str, white: Tensor, runs: list[Run]) -> Check:
    broken = torch.zeros(bench.m, dtype=torch.bool)
    for run in runs:
        broken |= run.broken
    count, flagged = _lost(bench, broken, white)
    left = int((~white).sum())
    evidence = f"{count} of the {left} that attacks with gradients left; " + "; ".join(map(str, runs))
    return answer(name, flagged, evidence)


def check_black_box(bench: Bench, white: Tensor, effort: Effort) -> Check:
    """Scores alone, and decisions alone, on what all gradients left."""
    name, threat = "white box beats black box", bench.threat
    attacks = _black_box(threat.norm, bench.x.ndim == 4, effort, threat.eps)
    if not attacks:
        return answer(name, None, f"Square, SimBA and HopSkipJump attack in Linf and L2; got {threat.norm}")
    runs = [bench.run(f"black box {i}", attack, among=~white) for i, attack in enumerate(attacks)]
    return _missed(bench, name, white, runs)


def check_noise(bench: Bench, white: Tensor, effort: Effort) -> Check:
    """Random points of the ball, on what all gradients left."""
    run = bench.run("noise", RandomNoise(effort.draws), among=~white)
    return _missed(bench, "gradients beat random noise", white, [run])


def check_targeted(bench: Bench, white: WhiteBox) -> Check:
    """The targeted DLR attack against the untargeted cross-entropy."""
    name = "untargeted keeps up with targeted"
    if white.targeted is None:
        return answer(name, None, "targeted APGD needs 4 classes and a threat in Linf or L2")
    # Neither of the two contains the other, as many steps contain one: a lone example says nothing, so the discordant
    # ones are compared by an exact sign test.
    only, too_many = _lost(bench, white.targeted.broken, white.untargeted)
    reverse = int((white.untargeted & ~white.targeted.broken).sum())
    p_value = binomial_test(only, only + reverse, 0.5, tail="upper") if only else 1.0
    evidence = (
        f"{only} only by the targeted, {reverse} only by the untargeted, p = {p_value:.3g} (allowed {CONFIDENCE:g}); "
        f"{white.targeted}; {int(white.untargeted.sum())} of {bench.m} by the runs on cross-entropy"
    )
    return answer(name, too_many and p_value < CONFIDENCE, evidence)


def check_transfer(bench: Bench, white: Tensor, surrogate: nn.Module | None, effort: Effort) -> Check:
    """Counterexamples of a surrogate, on what all gradients left."""
    name = "white box beats transfer"
    if surrogate is None:
        return answer(name, None, "no surrogate was given")
    attack = Transfer(surrogate, PGD(effort.steps), "surrogate")
    everyone = bench.run("transfer", attack)
    count, flagged = _lost(bench, everyone.broken, white)
    left = int((~white).sum())
    failed = share(bench.m - int(everyone.broken.sum()), bench.m)
    return answer(
        name, flagged, f"{count} of the {left} that attacks with gradients left; not transferred {failed}; {everyone}"
    )
