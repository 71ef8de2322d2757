"""Every figure and every table, from the committed records alone."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

from matplotlib.figure import Figure

from analysis.campaign import threat_of
from certify.campaign.attack_rows import attack_results
from certify.campaign.store import Store
from certify.campaign.tables import Format, as_text, compare_sources, render_comparison
from certify.errors import InputError
from figures.captions import words
from figures.certified_accuracy import certified_accuracy
from figures.compare import compare
from figures.input_surface import input_surface
from figures.page import write, write_table
from figures.recipe_figures import FIGURES, Picture
from figures.side_files import BESIDE, surface_caption
from figures.table_captions import CAPTIONS
from paper_repro.recipes import RECIPES, Recipe
from paper_repro.recipes.execute import MANIFEST, REPORT
from paper_repro.recipes.records import NotRecorded, Records
from paper_repro.recipes.report import report

INDEX = "index.md"
FIRST_SEED = "first_seed"
"""Folder of the figures that stages record for one seed alone, apart from the tables over all seeds."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A table or a picture in the index; without files, the reason why there are none."""

    title: str
    caption: str
    files: list[Path] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of the results.

    Attributes:
        sections: By folder of results, such as "free_at/small", what was written.
        differing: Committed tables that their records no longer give.
        skipped: By folder of results, why nothing was written.
    """

    sections: dict[str, list[Entry]] = field(default_factory=dict)
    differing: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def everything(results: Path, out: Path) -> Rebuilt:
    """Write the pictures and tables of every folder of results that has a manifest, and an index of them.

    Args:
        results: Holds <recipe>/<scale>/ with a manifest.json each. Nothing in it is changed.
        out: Gets <recipe>/<scale>/ likewise, and index.md.

    Raises:
        InputError: there is no such folder of results, or a record is damaged.
    """
    if not results.is_dir():
        raise InputError(f"need a folder of results; there is none at {results}")
    rebuilt = Rebuilt()
    for manifest in sorted(results.glob(f"*/*/{MANIFEST}")):
        _rebuild(manifest.parent, out, rebuilt)
    out.mkdir(parents=True, exist_ok=True)
    (out / INDEX).write_text(_index(rebuilt, out), encoding="utf-8")
    return rebuilt


def _rebuild(folder: Path, out: Path, rebuilt: Rebuilt) -> None:
    name, scale = folder.parent.name, folder.name
    section, target = f"{name}/{scale}", out / name / scale
    recipe = RECIPES.get(name)
    if recipe is not None and scale in recipe.scales:
        rebuilt.sections[section] = [*_of_recipe(recipe, folder, target), *_beside(folder, target)]
        _check_report(recipe, folder, target, rebuilt)
    elif recipe is not None:
        rebuilt.skipped[section] = f"{name} has no scale {scale}"
    elif name in _OLDER:
        rebuilt.sections[section] = _OLDER[name](folder, target)
        for file in (file for entry in rebuilt.sections[section] for file in entry.files):
            committed = folder / file.name
            if committed.is_file() and committed.read_bytes() != file.read_bytes():
                rebuilt.differing.append(committed)
    else:
        rebuilt.skipped[section] = "no recipe's; the text that a command printed is the record itself"


def _of_recipe(recipe: Recipe, folder: Path, target: Path) -> list[Entry]:
    """Every table of a recipe, with its picture where it has one."""
    records, entries = Records(folder), []
    for title, table in recipe.tables.items():
        key = recipe.name, title
        picture, caption = FIGURES.get(key), CAPTIONS.get(key)
        try:
            header, body = table(records)
        except NotRecorded as missing:
            entries.append(Entry(title, f"Not run: {missing}."))
            continue
        text = partial(_text, header, body)
        if picture is None:
            entries.append(
                Entry(title, caption.text(records) if caption else "", write_table(slug(title), target, text))
            )
        else:
            files = write(picture.name, target, partial(_draw, picture, records), text)
            entries.append(Entry(title, picture.caption(records), files))
    return entries


def _text(header: Sequence[str], body: Sequence[Sequence[str]], form: Format) -> str:
    return as_text(header, body, form)


def _draw(picture: Picture, records: Records, figure: Figure) -> None:
    picture.draw(figure, records)


def slug(title: str) -> str:
    """A file name made from a table's title."""
    return "_".join(re.findall(r"[a-z0-9]+", title.lower()))


def _check_report(recipe: Recipe, folder: Path, target: Path, rebuilt: Rebuilt) -> None:
    """Write the report anew, and compare it with the committed one; a run that has not ended has none."""
    records = Records(folder)
    text, committed = report(recipe, records, folder.name), folder / REPORT
    target.mkdir(parents=True, exist_ok=True)
    (target / REPORT).write_text(text, encoding="utf-8")
    if not committed.is_file():
        ended = all(records.has(stage) for stage in recipe.stages)
        if ended:
            rebuilt.differing.append(committed)
    elif committed.read_text(encoding="utf-8") != text:
        rebuilt.differing.append(committed)


def _plain_first(folder: Path) -> list[Path]:
    """The records of a folder by name, the plain network's before all others."""
    return sorted(folder.glob("*.npz"), key=lambda p: (not p.stem.startswith("plain"), p.name))


def _beside(folder: Path, target: Path) -> list[Entry]:
    """The figures of the side files that stages leave: surfaces, curves, and stores of certificates."""
    entries, records = [], Records(folder)
    for name, beside in BESIDE.items():
        sources = _plain_first(folder / name)
        if sources:
            caption = beside.caption(sources, records)
            entries.append(Entry(beside.title, caption, beside.draw(sources, target / FIRST_SEED)))
    for store in sorted(folder.glob("seed-*.sqlite")):
        dimension = records["certificates"].notes["dimension"]
        entries.append(_compared([store], target / store.stem, dimension, store.stem.replace("-", " ")))
    return entries


@contextmanager
def _copies(stores: Sequence[Path]) -> Iterator[list[Path]]:
    """Copies under the same names: opening a store may write beside it, and results are only read."""
    with TemporaryDirectory() as scratch:
        yield [Path(copyfile(store, Path(scratch) / store.name)) for store in stores]


def _compared(stores: Sequence[Path], target: Path, dimension: int, seeds: str) -> Entry:
    with _copies(stores) as copies:
        files = compare(copies, target, dimension=dimension)
        stated = _stated(copies)
    caption = (
        "Every certifier and attack, native and converted, in input units. Curves and marks: observed shares; the "
        f"table holds their exact 95 % intervals over images. n = {_counts(files)} images, {seeds}. {stated}"
    )
    return Entry(f"All certifiers and attacks, {seeds}", caption, files)


def _stated(stores: Sequence[Path]) -> str:
    """The smoothing and the attacks of stores, as their settings hold them."""
    smoothed: dict[str, object] = {}
    budgets: dict[str, dict[str, None]] = {}
    for path in stores:
        with Store(path) as store:
            for made in store.results():
                if made.certificate.subject != "f":
                    smoothed[f"{path.stem}, {made.settings['model'].rpartition(':')[2]}"] = made.settings["method"]
            for found in attack_results(store):
                threat = threat_of(found.settings)
                attacks = ", ".join(found.settings["attacks"])
                budgets.setdefault(attacks, {})[f"{threat.norm} {threat.eps:g}"] = None
    only = list(dict.fromkeys(smoothed.values()))
    said = [f"Smoothing: {words(smoothed if len(only) > 1 else only)}."] if smoothed else []
    said += [f"Attacks on f: {attacks}, within {' and '.join(held)}." for attacks, held in budgets.items()]
    return " ".join(said)


def _older_surfaces(folder: Path, target: Path) -> list[Entry]:
    sources = _plain_first(folder)
    return [Entry("Input surfaces", surface_caption(sources, Records(folder)), input_surface(sources, target))]


def _seeds_of(folder: Path) -> str:
    trained = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["seeds"]
    return f"{'seed' if len(trained) == 1 else 'seeds'} {', '.join(map(str, trained))}"


def _older_logs(folder: Path, target: Path) -> list[Entry]:
    files = certified_accuracy(sorted(folder.glob("*.tsv")), target, (0, 0.1, 0.2999), norm="Linf")
    caption = (
        "Verified accuracy at one Linf eps for each network. Shade: down to the 95 % simultaneous population bound. A "
        "log does not state its alpha: 0.001 is assumed, which is more than a certain certificate needs. "
        f"n = {_counts(files)} images, {_seeds_of(folder)}; the interval is over images alone."
    )
    return [Entry("Certified accuracy, from the exported logs", caption, files)]


def _older_stores(folder: Path, target: Path) -> list[Entry]:
    return [_compared(sorted(folder.glob("*.sqlite")), target, _PIXELS, _seeds_of(folder))]


def _older_pair(folder: Path, target: Path) -> list[Entry]:
    stores = [folder / f"{name}.sqlite" for name in ("split", "uniform")]
    with _copies(stores) as copies:
        files = certified_accuracy(copies, target, (0, 0.5, 1.0, 1.5, 1.95))
        text = render_comparison(compare_sources(copies, (0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 1.95)))
    paired = target / "comparison.md"
    paired.write_text(text, encoding="utf-8")
    circumstances = f"n = {_counts(files)} images, {_seeds_of(folder)}; intervals are over images alone."
    return [
        Entry(
            "Certified accuracy, L1",
            f"Split noise is certain, uniform noise is not. Shade: down to the 95 % simultaneous population bound. "
            f"{circumstances}",
            files,
        ),
        Entry("Split noise less uniform noise, image by image", circumstances, [paired]),
    ]


_PIXELS = 28 * 28
_OLDER: dict[str, Callable[[Path, Path], list[Entry]]] = {
    "comparison_mlp": _older_stores,
    "input_surfaces": _older_surfaces,
    "interval_training": _older_logs,
    "split_noise": _older_pair,
}
"""Folders of results that are no recipe's, and what can be made of them."""


def _counts(files: Sequence[Path]) -> str:
    """The numbers of images in the column m of a figure's table."""
    (table,) = (file for file in files if file.suffix == ".csv")
    with table.open(encoding="utf-8", newline="") as lines:
        return " or ".join(sorted({row["m"] for row in csv.DictReader(lines)}))


def _index(rebuilt: Rebuilt, out: Path) -> str:
    parts = ["# Figures and tables", "Made by `python -m figures all` from the committed records."]
    for section, entries in rebuilt.sections.items():
        parts.append(f"## {section}")
        for entry in entries:
            parts.append(f"### {entry.title}")
            paths = {file.suffix: file.relative_to(out).as_posix() for file in entry.files}
            if ".png" in paths:
                parts.append(f"![{entry.title}]({paths['.png']})")
            if entry.caption:
                parts.append(entry.caption)
            if paths:
                parts.append(", ".join(f"[{suffix[1:]}]({path})" for suffix, path in paths.items()))
    if rebuilt.skipped:
        parts += ["## Not rebuilt", "\n".join(f"* {section}: {why}." for section, why in rebuilt.skipped.items())]
    if rebuilt.differing:
        parts += ["## Committed tables that differ from their records"]
        parts.append("\n".join(f"* {'/'.join(path.parts[-3:])}" for path in rebuilt.differing))
    return "\n\n".join(parts) + "\n"
