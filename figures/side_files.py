"""The figures of what stages leave beside their records, for one seed alone: surfaces and curves."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from analysis.boundary_distance import BoundaryDistances
from analysis.noise_curve import NoiseCurve
from analysis.records import read_record
from figures import line_over_seeds
from figures.accuracy_in_noise import accuracy_in_noise
from figures.boundary_distance import boundary_distance
from figures.captions import each_seed
from figures.input_surface import input_surface
from figures.weight_surface import weight_surface
from paper_repro.recipes.records import Records


class Beside(NamedTuple):
    """What is made of a folder of side files: its title in the index, the figure, and the words below it."""

    title: str
    draw: Callable[[Sequence[Path], Path], list[Path]]
    caption: Callable[[Sequence[Path], Records], str]


def _noise(sources: Sequence[Path], out: Path) -> list[Path]:
    return accuracy_in_noise({source.stem: NoiseCurve.load(source) for source in sources}, out)


def _boundary(sources: Sequence[Path], out: Path) -> list[Path]:
    return boundary_distance({source.stem: BoundaryDistances.load(source) for source in sources}, out)


def surface_caption(sources: Sequence[Path], records: Records) -> str:
    """Of surfaces of one seed; the records are not needed."""
    _, provenance = read_record(sources[0])
    data = provenance["data"]
    count, part = re.search(r"(\d+) images", data), re.search(r" (\d+):(\d+)$", data)
    n = count[1] if count else str(int(part[2]) - int(part[1])) if part else ""
    return (
        "Mean cross-entropy around the same test images, on shared axes in units of eps; numbers are below each panel. "
        f"No interval: a mean over the images for one network. {data}; {f'n = {n} images, ' if n else ''}"
        f"seed {provenance['seed']}."
    )


def _noise_caption(sources: Sequence[Path], records: Records) -> str:
    curve = NoiseCurve.load(sources[0])
    return (
        "Accuracy against sigma in input units. Bars: one standard deviation over draws; shade: exact 95 % interval "
        f"for the population. n = {curve.n} images, {curve.method.draws} draws, seed {curve.seed}."
    )


def _boundary_caption(sources: Sequence[Path], records: Records) -> str:
    found = BoundaryDistances.load(sources[0])
    return (
        "A point for every test image that is right and whose two distances were found, both axes in input units (L2). "
        "No interval. "
        f"n = {len(found.sigma)} images, seed {found.seed}."
    )


def _weight_caption(sources: Sequence[Path], records: Records) -> str:
    says = (
        "Mean cross-entropy of training images against the distance along a random line through the weights, in units "
        "of the filters' own norms. No interval: one line of one seed."
    )
    if not records.has("weights"):
        return says
    record = records["weights"]
    counted = line_over_seeds.counted(record)
    return f"{says} {f'n = {counted}, ' if counted else ''}{each_seed(record)[0]}."


BESIDE: dict[str, Beside] = {
    "input_surface": Beside("Input surfaces, first seed", input_surface, surface_caption),
    "accuracy_in_noise": Beside("Accuracy in noise, first seed", _noise, _noise_caption),
    "boundary_distance": Beside("Distance to the boundary, first seed", _boundary, _boundary_caption),
    "weight_surface": Beside("Loss along a line through the weights, first seed", weight_surface, _weight_caption),
}
"""Folders of side files in a recipe's results."""
