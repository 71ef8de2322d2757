"""Counterexamples to one model, tried on another."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attack, Attacked, Queries
from analysis.attacks.geometry import project, unit
from analysis.attacks.pgd import look
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Threat


@dataclass(frozen=True, slots=True)
class Transfer:
    """Craft counterexamples on a surrogate, and try them on the target.

    An attack returns the surrogate's nearest counterexample, which just crosses the surrogate's boundary and carries
    over badly. So the same perturbation stretched to the whole budget is tried too.

    Args:
        surrogate: The model to craft on, in evaluation mode; no part of the provenance.
        attack: How to craft.
        name: What the surrogate is, such as its checkpoint's hash.

    Raises:
        InputError: the name is empty.

    Source: Papernot, McDaniel & Goodfellow (2016), "Transferability in machine learning".
    """

    surrogate: nn.Module = field(repr=False, compare=False)
    attack: Attack
    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError(f"need a name for the surrogate, its provenance; got {self.name!r}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for misclassified inputs within the threat.

        Args:
            model: The target, (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs in the box.
            y: (n,) labels.
            threat: An Linf, L2 or L1 ball.
            rng: Handed to the attack on the surrogate.

        Returns: Attacked about the target, without a loss. Costs count queries of the target alone: three forward
            passes, no gradients. An example that the surrogate withstands, or misclassifies as it is, gives nothing to
            carry over.

        Raises:
            InputError: training mode, or inputs that do not fit.
        """
        queries = Queries(model, x, y, threat)
        look(queries)
        crafted = self.attack(self.surrogate, x, y, threat=threat, rng=rng).adversarial
        stretched = project(x + threat.eps * unit(crafted - x, threat.norm), x, threat)
        with torch.no_grad():
            queries.logits(crafted)
            queries.logits(stretched)
        return queries.result(self)
