"""Run a recipe's stages in order, each once: a killed run goes on with the stage it was in."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import Any

import torch

from analysis.records import read_record
from certify import InputError
from certify.campaign.runner import environment
from paper_repro.models.checkpoint import write_atomically
from paper_repro.recipes.bench import Bench
from paper_repro.recipes.recipe import Recipe
from paper_repro.recipes.records import Records
from paper_repro.recipes.report import report

MANIFEST = "manifest.json"
REPORT = "report.md"


def execute(
    recipe: Recipe,
    scale: str,
    *,
    work: Path,
    results: Path,
    device: torch.device | str = "cpu",
    command: str = "",
    tell: Callable[[str], object] = lambda _: None,
) -> Records:
    """Run what has no record yet, and write tables and verdicts from the records.

    Args:
        recipe: What to run.
        scale: Which of its configurations.
        work: Folder of checkpoints and stores. With them a stage goes on where it was killed.
        results: Folder of records, tables and the manifest.
        device: Where to compute.
        command: For the manifest.
        tell: Told of every stage that begins.

    Raises:
        InputError: the folder holds records of another recipe or configuration, or what a stage refuses.
    """
    config, records, device = recipe.configuration(scale), Records(results), torch.device(device)
    identity = _identity(recipe, scale)
    check_same(recipe, scale, records)
    bench = Bench.open(config, work=work, results=results, device=device)
    results.mkdir(parents=True, exist_ok=True)
    started_from = commit()  # what this process has loaded; the source tree may move on while it works
    for stage, measure in recipe.stages.items():
        if records.has(stage):
            continue
        tell(stage)
        started = time.monotonic()
        records.write(stage, measure(bench), identity)
        circumstances = {
            "command": command,
            "commit": started_from,
            "threads": torch.get_num_threads(),
            "versions": {k: v for k, v in environment(device).items() if k != "pid"},
        }
        _note(bench, identity, stage, {**circumstances, "seconds": round(time.monotonic() - started, 1)})
    write_atomically(results / REPORT, report(recipe, records, scale).encode())
    return records


def _identity(recipe: Recipe, scale: str) -> dict[str, str]:
    return {"recipe": recipe.name, "scale": scale, "configuration": repr(recipe.configuration(scale))}


def check_same(recipe: Recipe, scale: str, records: Records) -> None:
    """Whether records are of that recipe at that scale, as it is configured today.

    Raises:
        InputError: they are not, or one is damaged.
    """
    identity = _identity(recipe, scale)
    for path in (records.path(stage) for stage in recipe.stages if records.has(stage)):
        _, provenance = read_record(path)
        differing = [key for key, value in identity.items() if provenance.get(key) != value]
        if differing:
            held = "; ".join(f"{key}: there {provenance.get(key)}, asked {identity[key]}" for key in differing)
            raise InputError(f"{path} is a record of something else ({held}); choose another folder")


def _note(bench: Bench, identity: Mapping[str, str], stage: str, circumstances: Mapping[str, Any]) -> None:
    """Add a finished stage to the manifest. Its seconds are those of the attempt that finished it."""
    path = bench.results / MANIFEST
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    manifest = {
        **identity,
        "seeds": list(bench.setting.seeds),
        "stages": {**held.get("stages", {}), stage: circumstances},
    }
    write_atomically(path, (json.dumps(manifest, indent=2) + "\n").encode())


def commit() -> str | None:
    """The commit of this source tree, with a + where files differ from it; None where there is none.

    Results do not count: they are what runs leave behind.
    """
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return check_output(["git", "-C", str(here), *arguments], stderr=DEVNULL, text=True).strip()

    try:
        git("ls-files", "--error-unmatch", "execute.py")  # an installed copy may lie in somebody else's repository
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "--untracked-files=no", ":/", ":!/paper_repro/results") else ""
        )
    except (CalledProcessError, OSError):
        return None
