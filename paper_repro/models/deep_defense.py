"""The networks of the Deep Defense paper. Every one maps (n, channels, side, side) in [0, 1] to (n, 10) logits.

The paper's data come with their mean subtracted. These networks read raw pixels, the unit of every radius here; a first
layer's bias can take up any mean.

Source: Yan, Guo & Zhang (2018), "Deep Defense", and its released code.
"""

import torch
from torch import nn

from certify.layers import Normalize


def deep_defense_mlp() -> nn.Sequential:
    """The MNIST perceptron, 784-500-150-10."""
    return nn.Sequential(
        Normalize([0.0], [1.0]),
        nn.Flatten(),
        nn.Linear(784, 500),
        nn.ReLU(),
        nn.Linear(500, 150),
        nn.ReLU(),
        nn.Linear(150, 10),
    )


def deep_defense_lenet() -> nn.Sequential:
    """The MNIST LeNet: convolutions of 20 and 50 filters, each pooled and without ReLU; 500 hidden units.

    Weights lie with the channels last, as in `lenet`.
    """
    return nn.Sequential(
        Normalize([0.0], [1.0]),
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    ).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def deep_defense_convnet() -> nn.Sequential:
    """The CIFAR-10 ConvNet: three padded 5 x 5 convolutions, one of 4 x 4, one of 1 x 1."""
    return nn.Sequential(
        Normalize([0.0] * 3, [1.0] * 3),
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(64, 64, 4),
        nn.ReLU(),
        nn.Conv2d(64, 10, 1),
        nn.Flatten(),
    )
