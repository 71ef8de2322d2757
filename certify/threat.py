"""The norms in which a perturbation is measured."""

from typing import Literal, get_args

from certify.errors import InputError

Norm = Literal["L0", "L1", "L2", "Linf"]
Box = tuple[float, float] | None

NORMS: tuple[str, ...] = get_args(Norm)


def check_box(box: Box) -> None:
    """Refuse a box that is not (low, high) with low < high.

    Raises:
        InputError: the rule is broken.
    """
    if box is not None and not (len(box) == 2 and box[0] < box[1]):
        raise InputError(f"need box = (low, high) with low < high, or None; got {box!r}")
