"""What attacks increase. Each maps logits (n, classes) and labels (n,) to (n,) values."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from certify.errors import InputError

LossName = Literal["cross_entropy", "margin", "dlr"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax(logits)[y], with a gradient that stays right where the softmax is 1 to the last bit."""
    return softplus(-log_odds(logits, y))


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """log(p_y / (1 - p_y)) for p = softmax(logits): it grows with p_y, and does not saturate where p_y rounds to 1."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return logits.gather(1, y[:, None])[:, 0] - others.logsumexp(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest other logit minus the label's: positive where misclassified. Source: Carlini & Wagner (2017)."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - logits.gather(1, y[:, None])[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio: -(z_y - max_{i != y} z_i) / (z_(1) - z_(3)), free of the logits' scale and shift.

    Raises:
        InputError: fewer than three classes.

    Source: Croce & Hein (2020), "Reliable evaluation of adversarial robustness".
    """
    if logits.shape[1] < 3:
        raise InputError(f"need at least 3 classes for the DLR loss; got {logits.shape[1]}")
    ranked = logits.sort(1, descending=True).values
    return margin(logits, y) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2).

    Raises:
        InputError: fewer than four classes.

    Source: Croce & Hein (2020).
    """
    if logits.shape[1] < 4:
        raise InputError(f"need at least 4 classes for the targeted DLR loss; got {logits.shape[1]}")
    ranked = logits.sort(1, descending=True).values
    gap = logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]
    return gap / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2 + 1e-12)


LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def loss_named(name: LossName) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of that name.

    Raises:
        InputError: an unknown name.
    """
    if name not in LOSSES:
        raise InputError(f"need a loss among {', '.join(LOSSES)}; got {name!r}")
    return LOSSES[name]
