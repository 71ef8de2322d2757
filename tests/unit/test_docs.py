"""The documentation: every block runs, every link leads somewhere, every public name is there, the site builds."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch

from analysis.masking_checks import QUESTIONS
from certify.campaign import Store
from certify.campaign.logs import read_log
from certify.campaign.tables import rows_of
from paper_repro.recipes import RECIPES
from paper_repro.recipes.recipe import SCALES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "paper_repro" / "results"
IDEAS = (
    "what-is-a-certificate",
    "choosing-sigma",
    "reading-the-comparison",
    "detecting-masking",
    "reading-a-hessian-spectrum",
    "statistics",
)
FIRST_EXAMPLE_AT_MOST = 10
_FENCE = re.compile(r"^```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, the file it is shown as, and its text."""

    language: str
    file: str | None
    body: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        title = _TITLE.search(match["options"])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match["language"], title and title[1], match["body"], line))
    return found


Runner = Callable[[str, list[str]], None]


def as_typed(module: str, arguments: list[str]) -> None:
    """`python -m module ...` in a process of its own, with this interpreter and warnings as errors."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), "."]), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def in_process(module: str, arguments: list[str]) -> None:
    """The same command line, without the seconds that a new interpreter takes to import torch."""
    importlib.import_module(f"{module}.__main__").app(arguments, standalone_mode=False)


def run_page(page: Path, runner: Runner = in_process) -> dict[str, Any]:
    """Run a page's blocks in order, in the current folder and in one namespace, which is returned."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.file is not None:
            Path(block.file).write_text(block.body, encoding="utf-8")
        elif block.language == "python":
            # Blank lines in front make a traceback name the page's own line.
            exec(compile("\n" * block.line + block.body, str(page), "exec"), namespace)
        elif block.language in ("console", "bash"):
            for line in block.body.replace("\\\n", " ").splitlines():
                interpreter, _, command = line.partition(" -m ")
                assert interpreter == "python", f"a block of commands holds this library's alone: {line}"
                module, *arguments = shlex.split(command)
                runner(module, arguments)
    return namespace


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, from which a page's own module can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with torch.random.fork_rng(devices=[]):
        yield tmp_path
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("runner", [in_process, pytest.param(as_typed, marks=pytest.mark.long)])
def test_the_quickstart_runs_as_it_stands(runner: Runner, folder: Path) -> None:
    names = run_page(DOCS / "quickstart.md", runner)
    assert {f.suffix for f in (folder / "figures").iterdir()} == {".png", ".pdf", ".md", ".csv", ".tex"}
    for page in ("report", "stored"):
        assert "<html" in (folder / page / "report.html").read_text(encoding="utf-8")
    with Store(folder / "mine.sqlite") as store:
        (results,) = store.results()  # the second command resumed the first: one run, each example once
    assert results.example.tolist() == names["test"].id[0:360:3].tolist()
    assert names["f"].subject == "f"
    assert names["g"].subject == "g(Gaussian(sigma=0.5))"
    assert (names["f"].lower <= names["f"].upper).all()
    assert names["f"].lower.max() > 0
    assert names["g"].lower.max() > 0


@pytest.mark.parametrize("name", IDEAS)
def test_the_page_of_an_idea_runs_as_it_stands(name: str, folder: Path) -> None:
    page = DOCS / f"{name}.md"
    assert any(block.language == "python" for block in blocks(page)), "each idea has a runnable example"
    run_page(page)


def test_the_first_example_is_whole_and_at_most_ten_lines() -> None:
    first = next(block for block in blocks(DOCS / "quickstart.md") if block.language == "python")
    lines = [line for line in first.body.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) <= FIRST_EXAMPLE_AT_MOST
    statements = ast.parse(first.body).body
    assert len(statements) == len(lines), "one statement a line: none is hidden behind a semicolon"
    assert max(map(len, lines)) <= 120
    names: dict[str, Any] = {}
    exec(first.body, names)
    right = names["certificate"].prediction == names["test"].y[:20]
    assert int((right & (names["certificate"].radius > 0)).sum()) >= 10, "a certificate that certifies something"


def test_only_installation_is_not_run() -> None:
    shown = [b.body for page in DOCS.glob("*.md") for b in blocks(page) if b.language in ("shell", "sh")]
    runnable = {"quickstart.md"} | {f"{name}.md" for name in IDEAS}
    for page in runnable:
        for block in blocks(DOCS / page):
            assert block.language in ("python", "bash", "shell"), f"{page}:{block.line} is of no known language"
            if block.language == "shell":
                assert all(line.startswith("python -m pip install ") for line in block.body.splitlines())
    assert shown


def _pages() -> list[Path]:
    return sorted(p for p in DOCS.rglob("*.md") if "gallery" not in p.relative_to(DOCS).parts[:-1])


def _without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


@pytest.mark.parametrize("page", _pages(), ids=lambda p: str(p.relative_to(DOCS)))
def test_every_relative_link_and_snippet_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(text)):
        if "://" in target or target.startswith(("#", "mailto:")):
            continue
        assert (page.parent / target.partition("#")[0]).is_file(), target
    for snippet in re.findall(r'--8<-- "([^"]+)"', text):
        assert (ROOT / snippet).is_file(), snippet


def _nav(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, list):
            yield from _nav(value)
        else:
            yield value


def _config() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")

    class Loader(yaml.SafeLoader):
        """Reads mkdocs' own tags as plain strings."""

    Loader.add_multi_constructor("!", lambda loader, _suffix, node: loader.construct_scalar(node))
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=Loader)


def test_navigation_names_every_page_once() -> None:
    named = list(_nav(_config()["nav"]))
    assert sorted(named) == sorted(p.relative_to(DOCS).as_posix() for p in _pages())


def test_nothing_is_asked_of_another_host() -> None:
    config = _config()
    assert config["strict"] is True
    assert config["theme"]["font"] is False
    assert "analytics" not in config.get("extra", {})
    assert not any("://" in str(config.get(key, "")) for key in ("extra_css", "extra_javascript"))


REFERENCE = {
    "certify": "certify.md",
    "certify.campaign": "campaign.md",
    "analysis.attacks": "attacks.md",
    "paper_repro.training": "training.md",
}


@pytest.mark.parametrize("module", REFERENCE)
def test_the_reference_names_what_a_package_exports_and_no_more(module: str) -> None:
    text = (DOCS / "api" / REFERENCE[module]).read_text(encoding="utf-8")
    named = re.findall(rf"^::: {re.escape(module)}\.(\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(importlib.import_module(module).__all__)


@pytest.mark.parametrize("page", sorted((DOCS / "api").glob("*.md")), ids=lambda p: p.stem)
def test_every_reference_names_something_that_is_documented(page: Path) -> None:
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        found = _resolve(name)
        if isinstance(found, ModuleType | type | FunctionType):
            assert found.__doc__, name


def _resolve(name: str) -> Any:
    module, rest = name, []
    while True:
        try:
            found: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for attribute in rest:
        found = getattr(found, attribute)
    return found


def test_the_page_on_masking_lists_every_check_in_order() -> None:
    text = (DOCS / "detecting-masking.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+?) \|", text, re.MULTILINE)
    assert rows == [(str(number), name) for number, name in enumerate(QUESTIONS, 1)]


def test_the_page_on_recipes_names_every_recipe_and_scale() -> None:
    named = re.findall(r"^\| `(\w+)` \|", (DOCS / "recipes.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*RECIPES, *SCALES} <= set(named)


QUOTED = {
    ("reading-the-comparison", "comparison_mlp/small/compare.md"): (
        "0.3154",
        "3.199",
        "0.1142",
        "0.822",
        "0.826",
        "0.736",
    ),
    ("choosing-sigma", "split_noise/small/comparison.md"): ("0.926", "0.918", "0.39", "0.538", "0.470", "0.00027"),
    ("detecting-masking", "masking/small/pgd_0.1.md"): ("193",),
    ("detecting-masking", "masking/small/pgd_0.3.md"): ("178", "180"),
    ("migration", "attack_conformance/small/conformance.txt"): ("883", "824", "953", "937"),
}


@pytest.mark.parametrize(("page", "record"), QUOTED)
def test_quoted_numbers_stand_in_the_record_that_the_page_names(page: str, record: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert any(f"`paper_repro/results/{place}`" in text for place in (record, f"{Path(record).parent}/"))
    source = (RESULTS / record).read_text(encoding="utf-8")
    for number in QUOTED[page, record]:
        for where in (text, source):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?:0*)(?![\d]|\.\d)", where), number


def test_the_table_of_sigmas_is_worked_out_from_its_records() -> None:
    text = (DOCS / "choosing-sigma.md").read_text(encoding="utf-8")
    header = next(line for line in text.splitlines() if "| average radius |" in line)
    radii = [float(cell.removeprefix(" r = ")) for cell in header.split("|")[2:-2]]
    for sigma in ("0.25", "0.5", "1.0"):
        (row,) = rows_of([RESULTS / "comparison_mlp" / "small" / f"gaussian_{sigma}.1.tsv"], radii)
        cells = ["0" if share == 0 else f"{share:.3f}" for share in row.accuracy.observed]
        assert f"| {sigma} | {' | '.join(cells)} | {row.acr:.3f} |" in text


def _extension(name: str) -> ModuleType:
    """A module of docs/, which is no package."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


def test_sections_of_one_paragraph_become_what_the_parser_takes() -> None:
    pytest.importorskip("griffe")
    rewritten = _extension("docstrings").rewritten
    text = "T.\n\nProves: a bound\nholds.\n\nArgs:\n    x: a.\n\nReturns: It.\nRaises:\n    Error: no.\n\nSource: X."
    assert rewritten(text).split("\n\n") == [
        "T.",
        "\nProves:\n    a bound\n    holds.",
        "\nArgs:\n    x: a.",
        "\n**Returns.** It.",
        "Raises:\n    Error: no.",
        "\n**Source.** X.\n",
    ]
    assert rewritten(rewritten(text)) == rewritten(text)


def test_gallery_takes_pictures_or_says_that_there_are_none(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    hooks = _extension("hooks")
    assert hooks.gallery(hooks.pictures(tmp_path)) == hooks.NOTHING
    (tmp_path / "input_surface").mkdir()
    (tmp_path / "input_surface" / "picture.png").write_bytes(b"")
    (tmp_path / "input_surface" / "picture.md").write_text("| a |\n|---|\n| 1 |\n", encoding="utf-8")
    page = hooks.gallery(hooks.pictures(tmp_path))
    assert "## Input surface" in page
    assert "(gallery/input_surface/picture.png)" in page
    assert "    | 1 |" in page


@pytest.mark.long
@pytest.mark.parametrize("with_pictures", [False, True])
def test_the_site_builds_without_a_warning(with_pictures: bool, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("certify", "analysis", "paper_repro", "figures", "mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        (copy / name).symlink_to(ROOT / name)
    shutil.copytree(DOCS, copy / "docs", ignore=shutil.ignore_patterns("gallery"))
    if with_pictures:
        (copy / "docs" / "gallery").mkdir()
        shutil.copy(DOCS / "assets" / "bracket.svg", copy / "docs" / "gallery" / "bracket.png")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]*\bsrc="(https?:[^"]+)"', text)
        fetched += re.findall(
            r'<link[^>]*rel="?(?:stylesheet|preload|preconnect|icon)"?[^>]*href="(https?:[^"]+)"', text
        )
        assert not fetched, f"{page} fetches {fetched}"
    assert "bracket.png" in (site / "gallery" / "index.html").read_text(encoding="utf-8") if with_pictures else True
    reference = (site / "api" / "certify" / "index.html").read_text(encoding="utf-8")
    assert reference.count('<details class="proves" open>') >= 20, "what is proved stands in boxes of its own"


@pytest.mark.parametrize("name", ["gaussian_0.25", "gaussian_0.5", "gaussian_1.0", "stability_0.5"])
def test_the_logs_of_the_comparison_are_those_of_its_stores(name: str, tmp_path: Path) -> None:
    folder = RESULTS / "comparison_mlp" / "small"
    copy = shutil.copyfile(folder / f"{name}.sqlite", tmp_path / "copy.sqlite")  # opening a store may write beside it
    log = read_log(folder / f"{name}.1.tsv")
    with Store(copy) as store:
        (made,) = (results for results in store.results() if results.certificate.subject != "f")
    assert log.example.tolist() == made.example.tolist()
    assert log.prediction.tolist() == made.certificate.prediction.tolist()
    proved = made.certificate.prediction.numpy() >= 0
    gap = made.certificate.radius.numpy()[proved] - log.radius[proved]
    assert gap.min() >= 0
    assert gap.max() < 1e-3
