"""python -m analysis falsify-property."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from analysis.property_attack import BoxAttack
from certify.campaign.onnx import input_shape, read_onnx
from certify.campaign.vnnlib import read_vnnlib
from certify.rng import Stream

_ATTACK = BoxAttack()


def falsify_property(
    onnx: Annotated[Path, typer.Option(help="the network, an ONNX file")],
    vnnlib: Annotated[Path, typer.Option(help="what must not happen, a VNN-LIB 1.0 file")],
    steps: Annotated[int, typer.Option(help="gradient steps")] = _ATTACK.steps,
    restarts: Annotated[int, typer.Option(help="points to start from in each case")] = _ATTACK.restarts,
    seed: Annotated[int, typer.Option(help="of the starts")] = 0,
) -> None:
    """Print "violated" and a counterexample's inputs and logits, or "not found"."""
    shape = input_shape(onnx)
    cases = read_vnnlib(vnnlib, shape)
    model, attack = read_onnx(onnx, shape), BoxAttack(steps, restarts)
    for index, case in enumerate(cases):
        found = attack(model, case, rng=Stream(seed).child("property", index))
        if found is not None:
            with torch.no_grad():
                logits = model(found[None])[0]
            values = [*(("X", i, v) for i, v in enumerate(found.flatten().tolist()))]
            values += [("Y", i, v) for i, v in enumerate(logits.tolist())]
            lines = "\n".join(f"({kind}_{i} {value!r})" for kind, i, value in values)
            typer.echo(f"violated\n({lines})")
            return
    typer.echo("not found")
