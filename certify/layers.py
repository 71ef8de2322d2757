"""The layers of ours that networks here are built with; verification has a rule for `Normalize` and `Residual`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from certify.errors import UnsupportedModule


class Normalize(nn.Module):
    """(x - mean) / std per channel: a network's first layer, so that radii are in the units of the input.

    Args:
        mean: One value per channel (dimension 1 of the input).
        std: Likewise; > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, channels, ...)."""
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x - self.mean.view(shape)) / self.std.view(shape)


def check_channels(module: Normalize, x: Tensor) -> None:
    """Refuse a normaliser that copies one channel to many: copies move together, as the axes of a ball need not.

    Raises:
        UnsupportedModule: the rule is broken.
    """
    channels = max(module.mean.numel(), module.std.numel())
    if channels not in (1, x.shape[1]):
        raise UnsupportedModule(f"need as many channels as Normalize has, {channels}; got inputs {tuple(x.shape)}")


class AblationEncoding(nn.Module):
    """The first layer of a network under `Ablation`: cat[x, 1 - x] along the channels, and zero for both where ablated.

    A shown pixel's two entries add to 1, an ablated one's to 0, so that NULL is no shade of grey. A network takes
    twice the channels behind it.

    Source: Levine & Feizi (2020), section 3: the encoding of NULL.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Encode (n, channels, ...) with values in [0, 1], or NULL = -1."""
        shown = (x >= 0).to(x.dtype)
        return torch.cat([x * shown, (1 - x) * shown], dim=1)


class Residual(nn.Module):
    """body(x) + shortcut(x): the block of a residual network, in a form that verification has a rule for.

    Args:
        body: Any network.
        shortcut: One of the same output shape; `nn.Identity()` where shapes agree.

    Source: He et al. (2016).
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Add the two branches."""
        return self.body(x) + self.shortcut(x)
