"""python -m certify verify-property: whether an ONNX network keeps a VNN-LIB property."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from certify.campaign.onnx import input_shape, read_onnx
from certify.campaign.vnnlib import read_vnnlib
from certify.lirpa import CROWN
from certify.property import Bounds, holds, interval_bounds
from certify.threat import Threat

BoundsName = Literal["ibp", "ibp-exact", "crown-ibp", "fast-lin", "crown", "alpha-crown"]


def make_bounds(name: BoundsName) -> Bounds:
    """The bounds of that name, over boxes."""
    anywhere = Threat("Linf", 0.0, box=None)
    match name:
        case "ibp":
            return interval_bounds
        case "ibp-exact":
            return partial(interval_bounds, outward=True)
        case "crown-ibp":
            return CROWN(anywhere, intermediate="ibp").box_bounds
        case "fast-lin":
            return CROWN(anywhere, slopes="fast_lin").box_bounds
        case "crown":
            return CROWN(anywhere).box_bounds
        case "alpha-crown":
            return CROWN(anywhere, slopes="optimized").box_bounds


def verify_property(
    onnx: Annotated[Path, typer.Option(help="the network, an ONNX file")],
    vnnlib: Annotated[Path, typer.Option(help="what must not happen, a VNN-LIB 1.0 file")],
    method: Annotated[
        BoundsName, typer.Option(help="intervals, these rounded outward, or linear bounds of rising cost")
    ] = "crown",
    boxes: Annotated[
        int, typer.Option(help="boxes that may be bounded for each of the property's, halved where needed")
    ] = 1,
) -> None:
    """Print "holds" where bounds prove that a network keeps a property, "unknown" elsewhere."""
    shape = input_shape(onnx)
    cases = read_vnnlib(vnnlib, shape)
    model = read_onnx(onnx, shape)
    typer.echo("holds" if holds(make_bounds(method), model, cases, boxes=boxes) else "unknown")
