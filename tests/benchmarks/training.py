"""What each training method costs, in multiples of plain training: passes, seconds and memory, measured in turns."""

import torch
from tabulate import tabulate

from certify import Gaussian, Threat
from paper_repro.data import Data, mnist
from paper_repro.models import cifar_resnet, lenet
from paper_repro.training import (
    CatRs,
    Consistency,
    DeepDefense,
    DeepFoolTraining,
    Erm,
    FastTraining,
    FreeTraining,
    HalfAugmentation,
    Macer,
    NoiseAugmentation,
    PairedStability,
    Parseval,
    PGDTraining,
    SmoothAdvTraining,
    SmoothedPredictions,
    SmoothMix,
    Stability,
    Trades,
    Training,
)
from paper_repro.training.cost import measure, table
from paper_repro.training.fit import Method

THREAT, NOISE = Threat("Linf", 0.3), Gaussian(0.5)

ADVERSARIAL: dict[str, Method] = {
    "plain": Erm(),
    "Free-8": FreeTraining(THREAT, replays=8),
    "Fast": FastTraining(THREAT),
    "PGD-7": PGDTraining(THREAT, steps=7),
    "TRADES-10": Trades(THREAT, steps=10),
}
"""What every network here can be trained with."""


def on_lenet(data: Data) -> dict[str, Method]:
    """Every method but IBP, whose passes are of bounds and not of inputs.

    CAT-RS gets targets that cost nothing here; in use they are votes of another network.
    """
    targets = SmoothedPredictions(data.x, torch.full((len(data), 10), 0.1))
    return ADVERSARIAL | {
        "Deep Defense": DeepDefense(),
        "DeepFool training": DeepFoolTraining(),
        "Parseval": Parseval(),
        "Gaussian": NoiseAugmentation(NOISE),
        "half augmentation": HalfAugmentation(NOISE),
        "stability": Stability(NOISE, 2.0),
        "paired stability": PairedStability(NOISE),
        "Consistency": Consistency(NOISE),
        "MACER": Macer(NOISE),
        "SmoothAdv, PGD": SmoothAdvTraining(NOISE, warmup=1),
        "SmoothAdv, DDN": SmoothAdvTraining(NOISE, warmup=1, attack="ddn"),
        "SmoothMix": SmoothMix(NOISE, warmup=1),
        "SmoothMix, one step": SmoothMix(NOISE, warmup=1, one_step=True),
        "CAT-RS": CatRs(NOISE, targets),
    }


def main() -> None:
    data = mnist("train")
    few = Data(data.x[:2048], data.y[:2048], data.id[:2048])
    nets = (
        ("LeNet", lenet, 128, on_lenet(few)),
        ("ResNet-20", lambda: cifar_resnet(20, (0.5,), (0.5,), 28), 64, ADVERSARIAL),
    )
    for name, make, batch, methods in nets:
        costs = measure(methods, make, few, Training(epochs=8, batch_size=batch), updates=7)
        print(f"{name}, MNIST, batches of {batch}, {torch.get_num_threads()} thread(s) of a CPU:")
        print(tabulate(table(costs, "plain"), headers="keys", floatfmt=".2f"), flush=True)
