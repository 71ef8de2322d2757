"""The figures of part 2 of the landscape laboratory: what they write, print and refuse."""

from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from analysis.linear_experiment import CASES
from analysis.records import write_record
from certify.errors import InputError
from figures.input_surface import _draw, input_surface
from figures.linear_threshold import linear_threshold
from figures.weight_surface import weight_surface

AXIS = torch.linspace(-2, 2, 5, dtype=torch.float64)
SQUARE = 0.1 + AXIS[:, None].square() + 0.5 * AXIS.square()
NUMBERS = {"clean": 0.1, "highest": 6.1, "highest_inside": 1.1, "bend": 2.0, "cosine": 0.5, "nonlinearity": 0.25}
SURFACE = {
    "command": "surface",
    "norm": "Linf",
    "eps": 0.1,
    "data": "d",
    "data_sha256": "0",
    "method": "InputSurface()",
    "seed": 0,
    "numbers": NUMBERS,
}
LANDSCAPE = {"command": "landscape", "norm": "L2", "eps": 0.5, "directions": "random", "method": "frozen=True"}


def surface_record(path: Path, name: str, **changes: Any) -> Path:
    arrays = {"axis": AXIS, "loss": SQUARE, "clipped": 0.25 * torch.ones(5, 5)}
    write_record(path, arrays, {**SURFACE, "name": name} | changes)
    return path


def landscape_record(path: Path, name: str, loss: torch.Tensor, extra: dict[str, torch.Tensor], **changes: Any) -> Path:
    axes = {f"axis{k}": AXIS for k in range(loss.ndim)}
    write_record(path, {"loss": loss, **axes, **extra}, {**LANDSCAPE, "name": name} | changes)
    return path


def suffixes(files: list[Path]) -> set[str]:
    assert all(file.stat().st_size > 0 for file in files)
    return {file.suffix for file in files}


def text(files: list[Path]) -> list[list[str]]:
    (table,) = (file for file in files if file.suffix == ".csv")
    return [line.split(",") for line in table.read_text().strip().splitlines()]


ALL = {".png", ".pdf", ".md", ".csv", ".tex"}


def test_input_surfaces_side_by_side(tmp_path: Path) -> None:
    sources = [surface_record(tmp_path / f"{name}.npz", name) for name in ("plain", "robust")]
    files = input_surface(sources, tmp_path / "out")
    assert suffixes(files) == ALL
    assert [row[0] for row in text(files)] == ["network", "plain", "robust"]
    assert text(files)[1][1:] == ["0.1", "6.1", "1.1", "2", "0.5", "0.25", "25 %"]
    other = surface_record(tmp_path / "other.npz", "other", eps=0.2)
    with pytest.raises(InputError, match=r"need surfaces that share their axes; they differ in eps: 0\.1, 0\.2"):
        input_surface([*sources, other], tmp_path / "out")
    wrong = surface_record(tmp_path / "wrong.npz", "wrong", command="landscape")
    with pytest.raises(InputError, match="need records of python -m analysis surface, at least one"):
        input_surface([wrong], tmp_path / "out")


def test_an_input_surface_is_read_without_its_table(tmp_path: Path) -> None:
    loss = torch.logspace(-3, 1, 25, dtype=torch.float64).reshape(5, 5)
    arrays = {"axis": AXIS, "loss": loss, "clipped": torch.zeros(5, 5)}
    figure = Figure()
    _draw(figure, [({k: v.numpy() for k, v in arrays.items()}, {**SURFACE, "name": "plain"})])
    panel, bar = figure.axes
    assert "largest loss within eps 1.1" in panel.get_xlabel()
    ticks = [tick for tick in bar.get_yticks() if 1e-3 <= tick <= 10]
    assert ticks == pytest.approx([0.001, 0.01, 0.1, 1, 10])
    assert all(line.get_path_effects() for line in panel.lines), "white lines have dark outlines"


def test_weight_surfaces_of_lines_planes_and_trajectories(tmp_path: Path) -> None:
    line = landscape_record(tmp_path / "line.npz", "net", SQUARE[:, 2], {})
    clean = landscape_record(tmp_path / "clean.npz", "net", SQUARE[:, 1], {}, eps=0.0, method="Landscape()")
    files = weight_surface([line, clean], tmp_path / "lines")
    assert suffixes(files) == ALL
    table = (tmp_path / "lines" / "weight_surface.csv").read_text()
    assert "frozen, L2 eps = 0.5" in table
    assert ",clean," in table
    plane = landscape_record(tmp_path / "plane.npz", "net", SQUARE, {}, method="Landscape()")
    path = {"trajectory": torch.tensor([[1.0, 1], [0, 0]]), "explained": torch.tensor([0.75, 0.125])}
    walked = landscape_record(tmp_path / "walked.npz", "walked", SQUARE, path)
    files = weight_surface([plane, walked, plane, plane], tmp_path / "planes")
    assert suffixes(files) == ALL
    table = (tmp_path / "planes" / "weight_surface.csv").read_text()
    assert "re-attacked, L2 eps = 0.5" in table
    assert "87.5 %" in table
    with pytest.raises(InputError, match="need all lines or all planes in one figure; got both"):
        weight_surface([line, plane], tmp_path / "out")
    with pytest.raises(InputError, match="need records of python -m analysis landscape, at least one"):
        weight_surface([], tmp_path / "out")


def test_the_linear_threshold_reads_the_experiment(tmp_path: Path) -> None:
    count = len(CASES)
    arrays = {
        "ratio": torch.tensor([0.9, 1.1]),
        "threshold": torch.full((count,), 0.5),
        "size": torch.tensor([[1e-2, 1e-8]]).repeat(count, 1),
        "gap": torch.full((count, 2), 1e-9),
    }
    write_record(tmp_path / "l.npz", arrays, {"cases": [repr(case) for case in CASES]})
    files = linear_threshold(tmp_path / "l.npz", tmp_path / "out")
    assert suffixes(files) == ALL
    assert len(text(files)) == 1 + count
    assert text(files)[1][4:] == ["0.50000", "1.0e-02", "1.0e-08", "1e-09"]
    write_record(tmp_path / "l.npz", arrays, {"cases": []})
    with pytest.raises(InputError, match="need the record of python -m analysis linear, with this package's cases"):
        linear_threshold(tmp_path / "l.npz", tmp_path / "out")
