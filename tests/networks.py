"""Networks for 8 x 8 grey images, small enough for a test and named on command lines too, and those of others."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from certify.campaign.weights import load_weights
from paper_repro.models import import_pickle, linear, mlp


def digits_mlp() -> nn.Sequential:
    """Two hidden layers of 16 units."""
    return mlp(side=8, hidden=16)


def digits_linear() -> nn.Sequential:
    """An affine classifier."""
    return linear(side=8)


def published(shared: Path, folder: Path, name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """A network that others trained, converted into `folder`."""
    return load_weights(make(), import_pickle(make(), shared / "checkpoints" / f"{name}.pth", folder))
