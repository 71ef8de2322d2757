"""The gallery: pictures that lie in docs/gallery, or else what the committed records alone can draw.

`python -m figures all --out docs/gallery` writes the former. Where there are none, the figures whose records are part
of the repository are drawn into a temporary folder; where that cannot be done either, the page says so. Either way no
picture is committed.
"""

import html
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

MARK = "<!-- gallery -->"
NOTHING = (
    "No picture is here: this copy of the documentation was built without matplotlib or without the committed records."
)
_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = _ROOT / "paper_repro" / "results"
_state: dict[str, Path] = {}
CAPTIONS = {
    "certificates_compared": "Worked out, not measured: what each bound proves from the same votes.",
    "certified_accuracy_of_sigma": (
        "Three-layer networks trained in noise, 500 MNIST images each. Logs do not state their alpha; the stores "
        "beside these do, 0.001. Records: `paper_repro/results/comparison_mlp/small`."
    ),
    "input_surface": (
        "The same images under a plain, a Free and a PGD-trained network, MNIST, on shared axes. Records: "
        "`paper_repro/results/input_surfaces/small`."
    ),
}
"""Of the figures that are drawn here; others speak for themselves."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, the table behind it, and where both are within the documentation."""

    png: Path
    table: Path | None
    uri: str
    title: str
    caption: str


def _logs(folder: str, *names: str) -> list[Path]:
    return [_RESULTS / folder / "small" / name for name in names]


def drawings(out: Path) -> Iterator[Callable[[], object]]:
    """One call per figure that committed records can draw, each into a folder of its own."""
    from figures.certificates_compared import certificates_compared
    from figures.certified_accuracy import certified_accuracy
    from figures.input_surface import input_surface

    yield lambda: certificates_compared(out / "certificates_compared")
    smoothing = _logs(
        "comparison_mlp", "gaussian_0.25.1.tsv", "gaussian_0.5.1.tsv", "gaussian_1.0.1.tsv", "stability_0.5.1.tsv"
    )
    radii = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    yield lambda: certified_accuracy(smoothing, out / "certified_accuracy_of_sigma", radii)
    yield lambda: input_surface(_logs("input_surfaces", "plain.npz", "free.npz", "pgd.npz"), out / "input_surface")


def draw(out: Path) -> None:
    """Draw what can be drawn; a figure whose records are missing is left out."""
    try:
        jobs = list(drawings(out))
    except ImportError:
        return
    for job in jobs:
        try:
            job()
        except (OSError, ValueError):  # InputError is a ValueError: no such record
            continue


def pictures(folder: Path) -> list[Picture]:
    """The pictures below a folder, by name; the folder's name where it says more than the picture's."""
    found = []
    for png in sorted(folder.rglob("*.png")):
        inner = png.relative_to(folder)
        table = png.with_suffix(".md")
        name = inner.parent.name or inner.stem
        title = name.replace("_", " ")
        title = title[:1].upper() + title[1:]
        uri = f"gallery/{inner.as_posix()}"
        found.append(Picture(png, table if table.is_file() else None, uri, title, CAPTIONS.get(name, "")))
    return found


def gallery(found: list[Picture]) -> str:
    """The page's body, Markdown."""
    if not found:
        return NOTHING
    parts = []
    for picture in found:
        source = html.escape(picture.uri, quote=True)
        parts += [f"## {picture.title}", "", picture.caption, "", f"![{picture.title}]({source})", ""]
        if picture.table is not None:
            table = picture.table.read_text(encoding="utf-8").strip()
            parts += ['??? note "The table behind it"', "", *(f"    {line}" for line in table.splitlines()), ""]
    return "\n".join(parts)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pictures to the site, drawing them first where nobody has."""
    written = Path(config.docs_dir) / "gallery"
    if any(written.rglob("*.png")):
        _state["folder"] = written
        return files
    _state["folder"] = folder = Path(tempfile.mkdtemp(prefix="gallery-"))
    draw(folder)
    for picture in pictures(folder):
        files.append(File.generated(config, picture.uri, abs_src_path=str(picture.png)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str | None:
    """Fill in the gallery's page."""
    if MARK not in markdown:
        return None
    return re.sub(re.escape(MARK), lambda _: gallery(pictures(_state["folder"])), markdown)


def on_post_build(*, config: MkDocsConfig) -> None:
    """Remove what was drawn for this build alone."""
    folder = _state.get("folder")
    if folder is not None and folder != Path(config.docs_dir) / "gallery":
        shutil.rmtree(folder, ignore_errors=True)
