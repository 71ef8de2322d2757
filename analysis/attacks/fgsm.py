"""One gradient step."""

from dataclasses import dataclass

from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries
from analysis.attacks.losses import LossName, loss_named
from analysis.attacks.pgd import ascend, direction_named, look, starts
from certify.rng import Stream
from certify.threat import Threat


@dataclass(frozen=True, slots=True)
class FGSM:
    """One step of length eps along the steepest direction, or of 1.25 eps from a random start.

    Args:
        random_start: Start at a random point of the ball; False starts at x.
        loss: What to increase.

    Raises:
        InputError: the loss is unknown.

    Source: Goodfellow et al. (2015); Wong, Rice & Kolter (2020), the random start.
    """

    random_start: bool = False
    loss: LossName = "cross_entropy"

    def __post_init__(self) -> None:
        loss_named(self.loss)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for misclassified inputs within the threat.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) inputs in the box.
            y: (n,) labels.
            threat: An Linf, L2 or L1 ball.
            rng: The start of example i comes from its child (0, i).

        Returns: Attacked; its loss is (n, 1), the objective after the step.

        Raises:
            InputError: training mode, or inputs that do not fit.
        """
        queries = Queries(model, x, y, threat)
        if self.random_start:
            look(queries)
        start = starts(queries, rng.child(0)) if self.random_start else queries.x
        step_size = (1.25 if self.random_start else 1.0) * threat.eps
        direction = direction_named("steepest", threat, start)
        return queries.result(
            self, ascend(queries, start, loss_named(self.loss), direction, 1, step_size, early_stop=True)
        )
