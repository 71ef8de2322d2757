"""Free adversarial training: the backward pass that trains the weights also moves the perturbation."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from certify import InputError, Threat
from certify.errors import check_count
from paper_repro.training.schedules import Ramp, threat_now
from paper_repro.training.step import Step, descend

DELTA = "delta"


@dataclass(frozen=True, slots=True)
class FreeTraining:
    """Minimise CE(f(clip(x + delta)), y) while the same backward pass moves delta by eps * sign(gradient).

    Each batch is met `replays` = m times in a row. There is one delta (batch size, ...), zero at the start of the run
    and never reset: what the last replay of a batch leaves is where the next batch starts, row by row. Both gradients
    are those at the weights before the update. Clipping to the box is part of the graph: where x + delta leaves it the
    gradient is 0, and delta stays there. A smaller last batch uses and changes the first rows of delta only.

    An update costs what a plain one costs, and epochs count updates: `Training(epochs=E)` makes E / m passes over the
    data, the last one cut short where m does not divide E, and the learning rate falls with the updates. Hence m <= E.
    m = 1 is one-step adversarial training with a perturbation carried over from the previous batch; it is not plain
    training, though the paper's figure plots plain training there.

    Args:
        threat: An Linf ball; eps is also the length of a step.
        replays: m.
        ramp: How eps grows; None keeps it. The paper keeps it.

    Raises:
        InputError: another norm, or m is not a positive integer.

    Source: Shafahi et al. (2019), "Adversarial training for free!", algorithm 1, with the details of its released code.
    """

    threat: Threat
    replays: int = 8
    ramp: Ramp | None = None

    def __post_init__(self) -> None:
        check_count("replays", self.replays)
        if self.threat.norm != "Linf":
            raise InputError(f"need an Linf threat, in which the step is a sign; got {self.threat.norm}")

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        """One optimiser step on a batch, with a step of its perturbation; returns the loss before both.

        The network stays in training mode, as in the source: batch norm meets adversarial inputs, m times each batch.
        """
        eps = threat_now(self.threat, self.ramp, step).eps
        if DELTA not in step.memory:
            step.memory[DELTA] = torch.zeros_like(x, memory_format=torch.contiguous_format)
        rows = step.memory[DELTA][: len(x)]
        delta = rows.detach().requires_grad_()
        z = x + delta
        loss = descend(optimizer, cross_entropy(model(z if self.threat.box is None else z.clamp(*self.threat.box)), y))
        assert delta.grad is not None
        with torch.no_grad():
            rows.add_(delta.grad.sign(), alpha=eps).clamp_(-eps, eps)
        return loss
