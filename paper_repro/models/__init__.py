"""Networks whose first layer normalises, and the checkpoints they are kept in."""

from paper_repro.models.checkpoint import import_pickle, save_checkpoint
from paper_repro.models.deep_defense import deep_defense_convnet, deep_defense_lenet, deep_defense_mlp
from paper_repro.models.resnet import cifar_resnet, preact_resnet18, resnet20, resnet110
from paper_repro.models.small import lenet, linear, mlp, mnist_challenge, wong_kolter

__all__ = [
    "cifar_resnet",
    "deep_defense_convnet",
    "deep_defense_lenet",
    "deep_defense_mlp",
    "import_pickle",
    "lenet",
    "linear",
    "mlp",
    "mnist_challenge",
    "preact_resnet18",
    "resnet20",
    "resnet110",
    "save_checkpoint",
    "wong_kolter",
]
