"""Networks for 8 x 8 grey images, small enough to train and certify in a test; named on command lines too."""

from torch import nn

from paper_repro.models import linear, mlp


def digits_mlp() -> nn.Sequential:
    """Two hidden layers of 16 units."""
    return mlp(side=8, hidden=16)


def digits_linear() -> nn.Sequential:
    """An affine classifier."""
    return linear(side=8)
