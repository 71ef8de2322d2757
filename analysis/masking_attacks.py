"""The attacks behind the masking report, each run once."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from analysis.attacks.apgd import targeted_apgd
from analysis.attacks.attacked import Attack, Attacked, Queries, norm_of
from analysis.attacks.fgsm import FGSM
from analysis.attacks.fmn import FMN
from analysis.attacks.losses import cross_entropy, log_odds
from analysis.attacks.pgd import PGD
from analysis.evaluation import Rung, explicit
from analysis.masking_checks import LAST
from certify.errors import InputError, check_count
from certify.rng import Stream
from certify.threat import Threat

_BATCH = 500


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard the report looks.

    Args:
        steps: Gradient steps of an attack.
        restarts: Random starts of PGD.
        queries: Of the score-based black-box attack.
        hops: Boundary points of HopSkipJump.
        draws: Random points; Carlini et al. ask for 10,000 or more.

    Raises:
        InputError: a count is not positive, or there are too few steps to see whether the last ones mattered.
    """

    steps: int = 100
    restarts: int = 5
    queries: int = 5000
    hops: int = 20
    draws: int = 10_000

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "queries", "hops", "draws"):
            check_count(name, getattr(self, name))
        if self.steps < 2 * LAST:
            raise InputError(f"need steps >= {2 * LAST}, or the last {LAST} are most of them; got {self.steps!r}")


@dataclass(frozen=True, slots=True)
class Traced:
    """PGD on the cross-entropy, whose trace is the log-odds of an error: they do not vanish where the loss does.

    Cross-entropies are compared badly: of an example that is not broken they are the odds, which span many powers of
    ten, so that means are those of a few examples and the range of a path is that of its last steps; and from log-odds
    of -90 on they leave the range of a float32.

    Args:
        pgd: On the cross-entropy, from random starts, without a step size of its own.

    Raises:
        InputError: another PGD.
    """

    pgd: PGD

    def __post_init__(self) -> None:
        if self.pgd.loss != "cross_entropy" or not self.pgd.random_start or self.pgd.step_size is not None:
            raise InputError(
                f"need PGD on the cross-entropy, from random starts, with step_size=None; got {self.pgd!r}"
            )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """What `pgd` returns, bit for bit, but for the loss."""
        queries = Queries(model, x, y, threat)
        return queries.result(self.pgd, self.pgd.maximise(queries, error_odds, rng))


def error_odds(logits: Tensor, y: Tensor) -> Tensor:
    """(n,) float64 log-odds of an error, with the gradient of the cross-entropy."""
    loss = cross_entropy(logits, y)
    return -log_odds(logits.detach().double(), y) + (loss - loss.detach())


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """An attack on some of the examples.

    Attributes:
        name: repr of the attack, and its budget where it is not the report's.
        broken: (m,) bool; False where it did not look.
        within: (m,) bool, broken within the report's threat, where the attack's own is another.
        among: Examples that it met.
        result: What it found on those, in their order; None where it was not run.
    """

    name: str
    broken: Tensor
    within: Tensor
    among: int
    result: Attacked | None

    def __str__(self) -> str:
        return f"{int(self.broken.sum())} of {self.among} by {self.name}"


class Bench:
    """The examples that a model classifies correctly, and the attacks run on them so far.

    Args:
        model: (n, ...) -> (n, classes) logits, in evaluation mode, with gradients that can be followed or are zero.
        x: (m, ...) correctly classified inputs.
        y: (m,) labels.
        n: Examples in all, with those misclassified as they are.
        threat: The report's.
        rng: Each attack draws from children of its own.

    Attributes:
        m: Examples that are attacked.
        rungs: Every attack so far.
        broken: (m,) bool, by any attack so far within the report's threat.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, n: int, threat: Threat, rng: Stream) -> None:
        self.model, self.x, self.y, self.n, self.threat, self.rng = model, x, y, n, threat, rng
        self.m = len(x)
        self.rungs: list[Rung] = []
        self.broken = torch.zeros(self.m, dtype=torch.bool)

    def run(self, label: str, attack: Attack, *, among: Tensor | None = None, threat: Threat | None = None) -> Run:
        """Run an attack.

        Args:
            label: Names its randomness.
            attack: The attack.
            among: (m,) bool, the examples it meets; all by default.
            threat: Another than the report's.
        """
        rows = (torch.ones(self.m, dtype=torch.bool) if among is None else among).nonzero()[:, 0]
        broken, within = torch.zeros(2, self.m, dtype=torch.bool)
        budget = self.threat if threat is None else threat
        named = attack.pgd if isinstance(attack, Traced) else attack
        name = repr(explicit(named, budget)) + (f" in {budget.norm} at eps = {budget.eps:g}" if threat else "")
        parts = []
        for part in rows.split(_BATCH) if len(rows) else ():
            at = part.to(self.x.device)
            rng = self.rng.child(label, int(part[0]))
            parts.append(attack(self.model, self.x[at], self.y[at], threat=budget, rng=rng))
            broken[part] = parts[-1].success.cpu()
            # What was looked for in another ball counts where it lies in the report's.
            distance = norm_of(parts[-1].adversarial.double() - self.x[at].double(), self.threat.norm).cpu()
            within[part] = broken[part] & ((distance <= self.threat.eps) | (budget == self.threat))
        result = _joined(parts) if parts else None
        cost = (int(result.forwards.sum()), int(result.backwards.sum())) if result else (0, 0)
        self.rungs.append(Rung(name, len(rows), int(broken.sum()), *cost))
        self.broken |= within
        return Run(name, broken, within, len(rows), result)


def _joined(parts: list[Attacked]) -> Attacked:
    first = parts[0]
    losses = [p.loss for p in parts if p.loss is not None]
    return replace(
        first,
        adversarial=torch.cat([p.adversarial for p in parts]),
        success=torch.cat([p.success for p in parts]),
        distance=torch.cat([p.distance for p in parts]),
        loss=torch.cat(losses) if losses else None,
        forwards=torch.cat([p.forwards for p in parts]),
        backwards=torch.cat([p.backwards for p in parts]),
    )


def unbounded(x: Tensor, threat: Threat) -> Threat:
    """A budget that no longer binds: the diameter of the box, or without one the spread of the inputs, twice.

    Without a box it holds, around each input, all the others: errors certainly, where those are of several classes.
    Where they are not, or all the same, there is no telling how far an error is; the budget is then still at least eps.
    """
    if threat.box is not None:
        far = float(norm_of(torch.full_like(x[:1], threat.box[1] - threat.box[0]), threat.norm))
    else:
        far = 2 * float(norm_of(x - x[:1], threat.norm).max())
    return replace(threat, eps=max(far, threat.eps))


@dataclass(frozen=True, slots=True, eq=False)
class WhiteBox:
    """The attacks with gradients.

    Attributes:
        one: One step.
        base: Iterative, on the cross-entropy; broken examples go on.
        longer: The same with twice the steps.
        again: The same with as many restarts more.
        margin: The same on the margin.
        nearest: Without a bound, the nearest error.
        targeted: Towards each of the likeliest classes, on the DLR loss; None where that is not defined.
    """

    one: Run
    base: Run
    longer: Run
    again: Run
    margin: Run
    nearest: Run
    targeted: Run | None

    @property
    def untargeted(self) -> Tensor:
        """(m,) bool: broken by any attack on the cross-entropy."""
        return self.one.broken | self.base.broken | self.longer.broken | self.again.broken

    @property
    def broken(self) -> Tensor:
        """(m,) bool: broken by any of them within the report's threat."""
        broken = self.untargeted | self.margin.broken | self.nearest.within
        return broken if self.targeted is None else broken | self.targeted.broken


def run_white_box(bench: Bench, effort: Effort, classes: int) -> WhiteBox:
    """Attack with gradients."""
    steps, restarts = effort.steps, effort.restarts
    base = PGD(steps, restarts=restarts, early_stop=False)
    targeted = None if bench.threat.norm == "L1" else targeted_apgd(classes, steps)
    return WhiteBox(
        one=bench.run("one", FGSM()),
        base=bench.run("base", Traced(base)),
        longer=bench.run("base", Traced(replace(base, steps=2 * steps))),  # from the same starts
        again=bench.run("again", Traced(base)),
        margin=bench.run("margin", replace(base, loss="margin")),
        nearest=bench.run("nearest", FMN(steps), threat=unbounded(bench.x, bench.threat)),
        targeted=None if targeted is None else bench.run("targeted", targeted),
    )
