"""IBP training: minimise the loss of the worst logits that interval bounds allow."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from certify import InputError, Stream, Threat
from certify.interval import IBP, Interval
from paper_repro.training.step import Step, descend


@dataclass(frozen=True, slots=True)
class IntervalTraining:
    """Minimise kappa CE(f(x), y) + (1 - kappa) CE(worst logits, y) + weight (tightness + balance) while eps grows.

    The first update draws the weights anew, so that widths neither grow nor shrink from layer to layer. For `warm_up`
    epochs eps is 0 and for `ramp` epochs it grows linearly to its full value; kappa falls with it from 1 to
    `kappa`, and the weight of the two regularisers from `regularisation` to 0.

    Args:
        eps: Linf budget in input units; > 0. Training with more than the budget of the test helps at small budgets.
        warm_up: Epochs at eps 0; >= 0.
        ramp: Epochs in which eps grows; >= 0.
        kappa: Share of the clean loss in the end; 0 <= kappa <= 1.
        regularisation: Weight of the regularisers at eps 0; >= 0.
        tolerance: They act on layers whose ratio is below it; 0 < tolerance <= 1.

    Raises:
        InputError: a value is out of range, or the schedule is longer than the training.

    Source: Gowal et al. (2018), section 3.3; initialisation and regularisers: Shi et al. (2021), sections 3.1 and 3.2.
    """

    eps: float
    warm_up: float = 1.0
    ramp: float = 20.0
    kappa: float = 0.0
    regularisation: float = 0.5
    tolerance: float = 0.5

    def __post_init__(self) -> None:
        for name in ("eps", "tolerance"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"need a finite {name} > 0; got {getattr(self, name)!r}")
        for name in ("warm_up", "ramp", "regularisation"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise InputError(f"need a finite {name} >= 0; got {getattr(self, name)!r}")
        if not (0 <= self.kappa <= 1 and self.tolerance <= 1):
            raise InputError(f"need 0 <= kappa <= 1 and tolerance <= 1; got {self.kappa!r} and {self.tolerance!r}")

    def grown(self, epoch: float) -> float:
        """The share of the full budget at an epoch: 0 in the warm-up, 1 after the ramp."""
        if epoch < self.warm_up:
            return 0.0
        return min((epoch - self.warm_up) / self.ramp, 1.0) if self.ramp else 1.0

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        """One optimiser step at the schedule's budget; returns the loss before it."""
        if step.number == 0:
            if self.warm_up + self.ramp > step.total / step.per_epoch:
                epochs = step.total / step.per_epoch
                raise InputError(f"need warm_up + ramp <= {epochs:g} epochs; got {self.warm_up + self.ramp:g}")
            draw_weights(model, step.rng.child("initialise"))
        grown = self.grown(step.epoch)
        kappa = 1 - grown * (1 - self.kappa)
        before: list[Interval] = []

        def visit(module: nn.Module, region: Interval) -> None:
            if isinstance(module, nn.ReLU):
                before.append(region)

        bound = IBP(Threat("Linf", grown * self.eps))
        worst = -bound.margins(model, x, y, visit=visit)
        loss = (1 - kappa) * cross_entropy(worst, y)
        if kappa:
            loss = loss + kappa * cross_entropy(model(x), y)
        if grown < 1 and self.regularisation and before:
            # At eps 0 every width is 0 and their ratio is not defined.
            tight = tightness(before, self.tolerance) if grown else 0.0
            loss = loss + self.regularisation * (1 - grown) * (tight + balance(before, self.tolerance))
        return descend(optimizer, loss)


def draw_weights(model: nn.Module, rng: Stream) -> None:
    """Normal weights of standard deviation sqrt(2 pi) / fan-in: the expected width stays the same through a ReLU layer.

    Source: Shi et al. (2021), section 3.1.
    """
    for number, module in enumerate(model.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            generator = rng.child(number).generator(module.weight.device)
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=math.sqrt(2 * math.pi) / fan_in, generator=generator)


def tightness(before: list[Interval], tolerance: float) -> Tensor:
    """Penalise layers whose mean width is more than 1 / tolerance times the first one's.

    # Departs from paper: there widths are compared with the input's, so that the first layer is penalised too.

    Args:
        before: Intervals before each activation, in order.
        tolerance: Ratio below which a layer is penalised.

    Source: Shi et al. (2021), section 3.2, L_tightness.
    """
    widths = torch.stack([(r.upper - r.lower).mean() for r in before])
    return (tolerance - widths[0] / widths).relu().mean() / tolerance


def balance(before: list[Interval], tolerance: float) -> Tensor:
    """Penalise layers in which active and inactive units differ much in the mean or the variance of their centres.

    Args:
        before: Intervals before each activation, in order.
        tolerance: Ratio below which a layer is penalised.

    Source: Shi et al. (2021), section 3.2, L_relu.
    """
    penalties = []
    for region in before:
        center = region.center
        active, inactive = region.lower > 0, region.upper < 0
        spread = (center - center.mean()).square()
        for up, down in (
            ((center * active).sum(), -(center * inactive).sum()),
            ((spread * active).sum(), (spread * inactive).sum()),
        ):
            ratio = torch.minimum(up, down) / torch.maximum(up, down).clamp_min(1e-12)
            penalties.append((tolerance - ratio).relu())
    return torch.stack(penalties).sum() / (tolerance * len(before))
