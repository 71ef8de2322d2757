"""Networks for the 8 x 8 digits, on which every recipe runs in seconds, and the small one for CIFAR-10."""

from torch import nn

from paper_repro.models.small import mlp, wong_kolter


def digits_mlp() -> nn.Sequential:
    """Two hidden layers of 32 units."""
    return mlp(side=8, hidden=32)


def digits_conv() -> nn.Sequential:
    """Two convolutions and a hidden layer."""
    return wong_kolter(side=8)


def cifar_conv() -> nn.Sequential:
    """The same for images of 32 x 32 in three colours."""
    return wong_kolter(channels=3, side=32)
