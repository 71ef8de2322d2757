"""Networks for MNIST-sized images. Every one maps (n, channels, side, side) in [0, 1] to (n, classes) logits."""

import torch
from torch import nn

from certify.layers import Normalize


def lenet(channels: int = 1, classes: int = 10) -> nn.Sequential:
    """LeNet: convolutions of 20 and 50 filters, 500 hidden units; 28 x 28 images.

    ReLU comes after pooling, where it costs a quarter; maximum and ReLU commute, so the function is the usual one.
    Weights lie with the channels last: pooling is vectorised over channels, and training is 1.8 times as fast.

    Source: the network of the published MNIST smoothing logs (Jeong & Shin 2020).
    """
    return nn.Sequential(
        Normalize([0.5] * channels, [0.5] * channels),
        nn.Conv2d(channels, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, classes),
    ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def wong_kolter(channels: int = 1, side: int = 28, classes: int = 10) -> nn.Sequential:
    """The small verified network: convolutions of 16 and 32 filters with stride 2, 100 hidden units.

    Source: Wong & Kolter (2018).
    """
    return nn.Sequential(
        Normalize([0.0] * channels, [1.0] * channels),
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def mnist_challenge() -> nn.Sequential:
    """Padded 5 x 5 convolutions of 32 and 64 filters, each before a pooling, 1024 hidden units; 28 x 28 images.

    Weights lie with the channels last, and ReLU comes after pooling, as for LeNet.

    Source: the architecture of mnist_challenge (Madry et al. 2018); its weights are not read here.
    """
    return nn.Sequential(
        Normalize([0.0], [1.0]),
        nn.Conv2d(1, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7**2, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def mlp(channels: int = 1, side: int = 28, hidden: int = 100, classes: int = 10) -> nn.Sequential:
    """Two hidden layers.

    Source: network "B" of Salman et al. (2019), "A convex relaxation barrier", on raw pixels.
    """
    return nn.Sequential(
        Normalize([0.0] * channels, [1.0] * channels),
        nn.Flatten(),
        nn.Linear(channels * side**2, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def linear(channels: int = 1, side: int = 28, classes: int = 10) -> nn.Sequential:
    """An affine classifier: every radius is known in closed form."""
    return nn.Sequential(
        Normalize([0.0] * channels, [1.0] * channels), nn.Flatten(), nn.Linear(channels * side**2, classes)
    )
