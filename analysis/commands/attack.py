"""python -m analysis attack."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from analysis.attacks.apgd import APGD, targeted_apgd
from analysis.attacks.attacked import Attack
from analysis.attacks.fmn import FMN
from analysis.attacks.pgd import PGD
from analysis.attacks.square import Square
from analysis.campaign import BLOCK, IN_MEMORY, attack_campaign, describe_results
from analysis.commands.options import (
    BlockOption,
    DataOption,
    DeviceOption,
    EpsOption,
    IndicesOption,
    ModelOption,
    NormOption,
    SeedOption,
    SplitOption,
    WeightsOption,
)
from certify.campaign.cli import AddressOption, ExecutorOption, WorkersOption, make_executor, parse_device
from certify.campaign.weights import load_weights, resolve
from certify.threat import Norm, Threat
from certify.voting import check_model, device_of


def ladder(model: nn.Module, x: Tensor, norm: Norm, steps: int, restarts: int) -> list[Attack]:
    """Cheap attacks first, then what they leave: cross-entropy, every target, and for images no gradient at all.

    Args:
        model: (n, ...) -> (n, classes) logits, in evaluation mode, on its device. Below 4 classes no target is tried.
        x: (n, ...) inputs; (n, c, h, w) are images.
        norm: Of the threat.
        steps: Gradient steps of each attack.
        restarts: Random starts of the first attack.

    Raises:
        InputError: the model is in training mode, or a count is not positive.
    """
    if norm == "L1":
        return [PGD(steps, restarts=restarts), FMN(steps)]
    attacks: list[Attack] = [APGD(steps, restarts)]
    targeted = targeted_apgd(_count_classes(model, x), steps)
    if targeted is not None:
        attacks.append(targeted)
    return [*attacks, Square()] if x.ndim == 4 else attacks


def _count_classes(model: nn.Module, x: Tensor) -> int:
    check_model(model)
    with torch.no_grad():
        return model(x[:1].to(device_of(model))).shape[1]


def attack(
    model: ModelOption,
    weights: WeightsOption,
    data: DataOption,
    eps: EpsOption,
    norm: NormOption = "Linf",
    steps: Annotated[int, typer.Option(help="gradient steps of each attack")] = 100,
    restarts: Annotated[int, typer.Option(help="random starts of the first attack")] = 1,
    indices: IndicesOption = ":",
    split: SplitOption = "test",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    block: BlockOption = BLOCK,
    store: Annotated[Path | None, typer.Option(help="SQLite file; an existing one is resumed")] = None,
    add: Annotated[bool, typer.Option(help="allow a second run beside the one in the store")] = False,
    executor: ExecutorOption = "serial",
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Robust accuracy under a ladder of attacks, each on the survivors of the ones before."""
    by = make_executor(executor, workers, address)
    examples = resolve(data)(split=split)
    network = load_weights(resolve(model)(), weights).to(parse_device(device))
    results = attack_campaign(
        IN_MEMORY if store is None else store,
        ladder(network, examples.x, norm, steps, restarts),
        network,
        examples,
        names=(model, f"{data} {split}"),
        threat=Threat(norm, eps),
        indices=indices,
        seed=seed,
        block=block,
        add=add,
        executor=by,
    )
    typer.echo(describe_results(results))
