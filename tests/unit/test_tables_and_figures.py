"""Tables and figures: one set of numbers in every form, bounds rounded down, the picture drawn from the same rows."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from scipy.stats import beta
from typer.testing import CliRunner

import figures.__main__
from certify import ABSTAIN, Certificate, Deterministic, Gaussian, InputError, PerExample, Smoothing
from certify.__main__ import app
from certify.campaign import Published, Results, Store
from certify.campaign.tables import read_source, render, rows_of
from figures.certified_accuracy import _draw, certified_accuracy

METHOD = Smoothing(Gaussian(0.5), n=1000)
RADII = [0.0, 0.25, 0.5, 1.0]
M = 100


def make_store(
    path: Path, *, examples: Sequence[int] = range(M), shift: float = 0.0, alpha: float | None = 0.01, seed: int = 0
) -> Path:
    """100 examples: 70 right with radii 0.01 to 0.70, 10 abstentions, 20 wrong with radius 2."""
    made = [0.01 * (i + 1) + shift if i < 70 else 0.0 if i < 80 else 2.0 for i in range(len(examples))]
    radius = torch.tensor(made, dtype=torch.float64)
    label = torch.zeros(len(examples), dtype=torch.int64)
    certificate = Certificate(
        prediction=torch.where(radius == 0, ABSTAIN, torch.where(radius == 2, 1, 0)),
        radius=radius,
        norm="L2",
        subject="g(Gaussian(sigma=0.5))",
        guarantee=Deterministic() if alpha is None else PerExample(alpha),
        method=METHOD,
        samples=torch.arange(len(examples)) + 1000,
    )
    with Store(path, create=True) as store:
        run = store.open_run({"model": "networks:small_net", "seed": seed}, {}, add=True)
        run.append(certificate, list(examples), label.tolist(), seconds=1.0)
    return path


def make_log(path: Path, examples: Sequence[int] = range(M)) -> Path:
    """The even examples right with radius 0.5, the others wrong."""
    rows = [f"{i}\t0\t{i % 2}\t0.5\t{1 - i % 2}\t1.0" for i in examples]
    path.write_text("\n".join(["idx\tlabel\tpredict\tradius\tcorrect\ttime", *rows]), encoding="utf-8")
    return path


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def lines(text: str) -> list[dict[str, str]]:
    """The body of a CSV table, by column."""
    return list(csv.DictReader(io.StringIO(text)))


def at(line: dict[str, str], radii: Sequence[float] = RADII) -> list[str]:
    """A line's cells at the radii."""
    return [line[f"r={r:g}"] for r in radii]


def floored(value: float) -> str:
    return str(Decimal(value).quantize(Decimal("0.001"), ROUND_FLOOR))


# --- the table ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.01, None])
def test_the_numbers_of_a_store(tmp_path: Path, alpha: float | None) -> None:
    """Against counts made by hand and scipy's quantiles."""
    rho, failure = 0.05, alpha or 0.0
    table = lines(render(rows_of([make_store(tmp_path / "s", alpha=alpha)], RADII, rho=rho), "csv"))
    assert [line["quantity"] for line in table] == ["observed", "each >=, 95 %", "all >=, 95 %"]
    for line in table:
        assert (line["source"], line["norm"]) == ("small_net g(Gaussian(sigma=0.5))", "L2")
        # 1000 to 1099 votes, 1049.5 in the mean.
        assert (line["m"], line["votes"], line["alpha"]) == ("100", "1050", f"{failure:g}")
    observed, each, together = table
    # 70 radii of one to seventy hundredths, over 100 examples: abstentions and errors count as 0.
    assert [line["ACR"] for line in table] == [f"{70 * 71 / 2 / 100 / 100:.4f}", "", ""]
    assert at(observed) == ["0.700", "0.460", "0.210", "0.000"]
    hits = [70, 46, 21, 0]
    single = [float(beta.ppf(rho, k, M - k + 1)) if k else 0.0 for k in hits]
    simultaneous = [k / M - math.sqrt(math.log(1 / rho) / 2 / M) for k in hits]
    for line, reported in ((each, single), (together, simultaneous)):
        assert at(line) == [floored(max(0.0, (value - failure) / (1 - failure))) for value in reported]


def test_bounds_round_down_and_observations_to_nearest(tmp_path: Path) -> None:
    (row,) = rows_of([make_store(tmp_path / "s")], [0.0, 1 / 3], rho=0.001)
    accuracy = replace(
        row.accuracy,
        observed=np.array([0.9995, 0.00051]),
        lower=np.array([0.9999999, 0.0009999]),
        band=np.array([1 - 2**-53, 0.0]),
    )
    text = render([replace(row, accuracy=accuracy, acr=0.12345)], "csv")
    assert cells(text)[0][-2:] == ["r=0", "r=0.333333"]
    assert [[line["quantity"], line["ACR"], *at(line, [0, 1 / 3])] for line in lines(text)] == [
        ["observed", "0.1235", "1.000", "0.001"],
        ["each >=, 99.9 %", "", "0.999", "0.000"],
        ["all >=, 99.9 %", "", "0.999", "0.000"],
    ]


def test_a_log_is_shown_as_published(tmp_path: Path) -> None:
    store, log = make_store(tmp_path / "s"), make_log(tmp_path / "paper.tsv")
    table = lines(render(rows_of([store, log], [0.5]), "csv"))
    assert [line["source"] for line in table] == ["small_net g(Gaussian(sigma=0.5))"] * 3 + ["paper"] * 3
    shown = table[3]
    assert (shown["norm"], shown["m"], shown["votes"], shown["alpha"]) == ("as published", "100", "", "0.001 assumed")
    assert (shown["quantity"], shown["ACR"], shown["r=0.5"]) == ("observed", "0.2500", "0.500")
    doubting = lines(render(rows_of([log], [0.5], log_alpha=0.1), "csv"))
    assert doubting[1]["alpha"] == "0.1 assumed"
    assert float(doubting[1]["r=0.5"]) < float(table[4]["r=0.5"])


def test_a_store_gives_its_runs_and_then_its_logs(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s")
    make_store(path, seed=1, shift=0.1)
    with Store(path) as store:
        store.add_log(Published.of("paper", [(0, 1, 1, 0.5, True, 1.0)]))
    items = read_source(path)
    assert [type(item) for item in items] == [Results, Results, Published]
    assert [row.proved for row in rows_of([path], RADII)] == [True, True, False]
    assert rows_of([path], RADII)[1].accuracy.observed.tolist() == [0.7, 0.56, 0.31, 0.0]


def test_every_form_shows_the_same_cells(tmp_path: Path) -> None:
    rows = rows_of([make_store(tmp_path / "s"), make_log(tmp_path / "a_log.tsv")], RADII)
    table = cells(render(rows, "csv"))

    markdown = render(rows, "md").splitlines()
    assert set(markdown[1]) == {"|", "-"}
    assert [[c.strip() for c in line.strip("|").split("|")] for line in markdown[:1] + markdown[2:]] == table

    latex = render(rows, "tex")
    assert latex.startswith("\\begin{tabular}{")
    assert latex.endswith("\\end{tabular}\n")
    lines = [line.strip().removesuffix("\\\\") for line in latex.splitlines() if "&" in line]
    unescaped = [
        [c.strip().replace("\\ensuremath{>}", ">").replace("\\_", "_").replace("\\%", "%") for c in line.split("&")]
        for line in lines
    ]
    assert unescaped == table


def test_averages_are_over_rows(tmp_path: Path) -> None:
    sources = [make_store(tmp_path / str(i), shift=shift) for i, shift in enumerate((0.0, 0.05, 0.25))]
    rows = rows_of(sources, RADII)
    table = lines(render(rows, "csv", average=True))
    assert len(table) == 3 * 3 + 2
    average, deviation = table[-2:]
    for line, name, function in ((average, "mean", statistics.mean), (deviation, "sd", statistics.stdev)):
        assert (line["source"], line["norm"], line["m"], line["quantity"]) == ("3 rows", "L2", "100", name)
        assert line["ACR"] == f"{function([row.acr for row in rows]):.4f}"
    # By hand: shares of .46, .51, .70 at 0.25, and of .21, .26, .46 at 0.5; the sample's deviation, over n - 1.
    assert at(average) == ["0.700", "0.557", "0.310", "0.000"]
    assert at(deviation) == ["0.000", "0.127", "0.132", "0.000"]


def test_averages_are_refused_where_they_mean_nothing(tmp_path: Path) -> None:
    first, second = make_store(tmp_path / "a"), make_store(tmp_path / "b", examples=range(1, M + 1))
    with pytest.raises(
        InputError, match=r"^need the same examples in every row that is averaged; the index sets differ$"
    ):
        render(rows_of([first, second], RADII), average=True)
    with pytest.raises(InputError, match=r"^need at least two rows to average; got 1$"):
        render(rows_of([first], RADII), average=True)
    for others in (RADII[:-1], [0.0, 0.25, 0.5, 1.5]):
        with pytest.raises(InputError, match=r"^need the same radii in every row that is averaged$"):
            render(rows_of([first], RADII) + rows_of([first], others), average=True)


def test_the_form_is_one_of_three(tmp_path: Path) -> None:
    rows: Any = rows_of([make_store(tmp_path / "s")], RADII)
    with pytest.raises(InputError, match=r"^need a form among md, csv, tex; got 'html'$"):
        render(rows, "html")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("radii", "options", "message"),
    [
        ([-0.1], {}, r"^need finite radii >= 0; got \[-0\.1\]$"),
        ([0.0, math.nan], {}, r"^need finite radii >= 0; got \[0\.0, nan\]$"),
        ([math.inf], {}, r"^need finite radii >= 0; got \[inf\]$"),
        ([0.0], {"rho": 0.0}, r"got 0\.0$"),
        ([0.0], {"rho": 1.0}, r"got 1\.0$"),
        ([0.0], {"log_alpha": -0.1}, r"^need 0 <= alpha < 1; got -0\.1$"),
        ([0.0], {"log_alpha": 1.0}, r"^need 0 <= alpha < 1; got 1\.0$"),
    ],
)
def test_values_out_of_range_are_refused(
    tmp_path: Path, radii: list[float], options: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        rows_of([make_log(tmp_path / "l.tsv")], radii, **options)


def test_sources_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^need a store or a log; no file at .*nothing$"):
        read_source(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"^need a store or a log; no file at"):
        read_source(tmp_path)
    with Store(tmp_path / "s", create=True):
        pass
    with pytest.raises(InputError, match=r"^the store .*s holds no certificate yet$"):
        read_source(tmp_path / "s")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt: need the header"):
        read_source(tmp_path / "notes.txt")
    (tmp_path / "cut").write_bytes((make_store(tmp_path / "t")).read_bytes()[:5000])
    with pytest.raises(InputError, match=r"^the store .*cut is damaged"):
        read_source(tmp_path / "cut")


def test_the_command_prints_or_writes_the_table(tmp_path: Path) -> None:
    sources = [make_store(tmp_path / "s"), make_log(tmp_path / "l.tsv")]
    expected = render(rows_of(sources, [0, 0.25], rho=0.1, log_alpha=0.02), "md")
    command = ["table", *map(str, sources), "--radii", "0,0.25", "--rho", "0.1", "--log-alpha", "0.02"]
    printed = CliRunner().invoke(app, command, catch_exceptions=False)
    assert printed.stdout == expected
    written = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "t.md")], catch_exceptions=False)
    assert written.stdout == ""
    assert (tmp_path / "t.md").read_text() == expected


# --- the figure ---------------------------------------------------------------------------------------------------


def test_a_figure_is_two_pictures_and_the_table_in_three_forms(tmp_path: Path) -> None:
    sources = [make_store(tmp_path / "s"), make_log(tmp_path / "l.tsv")]
    out = tmp_path / "new" / "figures"
    files = certified_accuracy(sources, out, RADII, rho=0.1)
    assert [f.name for f in files] == [f"certified_accuracy.{s}" for s in ("png", "pdf", "md", "csv", "tex")]
    assert sorted(files) == sorted(out.iterdir())
    assert files[0].read_bytes().startswith(b"\x89PNG\r\n")
    assert files[1].read_bytes().startswith(b"%PDF-")
    for file in files[2:]:
        form = file.suffix[1:]
        command = ["table", *map(str, sources), "--radii", "0,0.25,0.5,1.0", "--rho", "0.1", "--format", form]
        assert file.read_text() == CliRunner().invoke(app, command, catch_exceptions=False).stdout
    # The same data gives the same bytes, so a committed figure changes only where a number does.
    again = certified_accuracy(sources, tmp_path / "again", RADII, rho=0.1)
    assert [f.read_bytes() for f in again] == [f.read_bytes() for f in files]


def test_the_curve_is_the_observed_share_and_the_shade_its_bound(tmp_path: Path) -> None:
    grid = list(np.linspace(0, 0.8, 50))
    rows = rows_of([make_store(tmp_path / "s"), make_log(tmp_path / "l.tsv")], grid)
    figure = Figure()
    _draw(figure, rows)
    (axes,) = figure.axes
    assert len(axes.lines) == 2
    for row, line, shade in zip(rows, axes.lines, axes.collections, strict=True):
        assert isinstance(shade, PolyCollection)
        np.testing.assert_array_equal(line.get_xdata(), grid)
        np.testing.assert_array_equal(line.get_ydata(), row.accuracy.observed)
        corners = {tuple(corner) for path in shade.get_paths() for corner in np.asarray(path.vertices)}
        assert corners == {*zip(grid, row.accuracy.band, strict=True), *zip(grid, row.accuracy.observed, strict=True)}
    assert [line.get_label() for line in axes.lines] == [
        "small_net g(Gaussian(sigma=0.5)): n = 100, alpha = 0.01, average radius 0.249",
        "l: n = 100, alpha = 0.001 assumed, average radius 0.250",
    ]
    assert axes.get_xlabel() == "radius (L2, as published, input units)"
    assert axes.get_xlim()[0] < 0 < grid[-1] < axes.get_xlim()[1], "marks at the ends are whole"
    assert axes.get_ylim()[0] < 0 < 1 < axes.get_ylim()[1]
    figure = Figure()
    _draw(figure, rows[1:], "Linf")
    assert figure.axes[0].get_xlabel() == "radius (Linf, input units)"
    assert "95 % simultaneous population bound" in axes.get_title()


def test_a_figure_of_nothing_certified(tmp_path: Path) -> None:
    """All wrong: the axis has no length of its own, and there is still a figure and a table."""
    log = tmp_path / "l.tsv"
    log.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t2\t0.5\t0\t1.0\n", encoding="utf-8")
    files = certified_accuracy([log], tmp_path / "out", [0.0])
    assert cells(files[3].read_text())[1][-1] == "0.000"


def test_the_figure_command_prints_its_table(tmp_path: Path) -> None:
    source = make_store(tmp_path / "s")
    command = ["certified_accuracy", str(source), "--out", str(tmp_path / "out"), "--radii", "0,0.5", "--rho", "0.2"]
    done = CliRunner().invoke(figures.__main__.app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout == (tmp_path / "out" / "certified_accuracy.md").read_text()
    assert done.stdout == render(rows_of([source], [0, 0.5], rho=0.2), "md")


def test_rows_of_equal_content_are_drawn_apart(tmp_path: Path) -> None:
    """Two runs under one name, as two seeds are, keep a line each."""
    rows = rows_of([make_store(tmp_path / "s")], RADII)
    figure = Figure()
    _draw(figure, [*rows, replace(rows[0], acr=0.5)])
    first, second = figure.axes[0].lines
    assert first.get_color() != second.get_color()
    assert first.get_marker() != second.get_marker(), "in grey too"
    assert first.get_linestyle() != second.get_linestyle()
