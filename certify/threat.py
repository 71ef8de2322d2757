"""What an adversary may do: a norm, a budget, and the box that inputs live in."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from certify.errors import InputError

Norm = Literal["L0", "L1", "L2", "Linf"]
Box = tuple[float, float] | None

Region = Literal["ball", "box", "lattice"]
"""What part of the ball a certificate speaks of: all of it, its part in the input box, or its points on the lattice."""

NORMS: tuple[str, ...] = get_args(Norm)


def check_box(box: Box) -> None:
    """Refuse a box that is not (low, high) with low < high.

    Raises:
        InputError: the rule is broken.
    """
    if box is not None and not (len(box) == 2 and box[0] < box[1]):
        raise InputError(f"need box = (low, high) with low < high, or None; got {box!r}")


def leaves(x: Tensor, box: tuple[float, float]) -> bool:
    """Whether some coordinate of x is outside the box.

    As tensors: in x's own precision an edge of the box may round outwards, and inputs at the face with it.
    """
    return bool(((x < box[0]) | (x > box[1])).any())


@dataclass(frozen=True, slots=True)
class Threat:
    """Perturbations of norm at most eps, such that the perturbed input stays in the box.

    Args:
        norm: "L1", "L2", "Linf" or "L0".
        eps: Budget in input units, such as 8 / 255; >= 0. For L0 a number of coordinates.
        box: Where inputs must lie; None for data that is not pixels.

    Raises:
        InputError: the norm is unknown, eps is negative or not finite, or the box is empty.
    """

    norm: Norm
    eps: float
    box: Box = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise InputError(f"need a norm among {', '.join(NORMS)}; got {self.norm!r}")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise InputError(f"need a finite eps >= 0; got {self.eps!r}")
        check_box(self.box)
