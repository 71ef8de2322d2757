"""One page about one's own network: what is proved, what was found, and what it cost, in a file that needs no other."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certify.campaign.store import Store
from certify.errors import InputError
from figures.report_page import render_page
from figures.report_panels import unmeasured
from figures.report_rows import Source, identity, networks
from figures.report_sections import chapter, command_for
from paper_repro.models.checkpoint import write_atomically

PAGE = "report.html"
FORMAT = 1
"""Of the record beside a store."""
_NAMED = 3
"""Networks up to which the title names each."""


def report(store: Path, out: Path, *, rho: float = 0.05) -> Path:
    """Write the page of a store; the same store and record give the same bytes.

    What `report_run` measured beside the rows is read from the record next to the store, where there is one.

    Args:
        store: Certificates, attacks, or both.
        out: The folder; made where missing.
        rho: Failure probability of each interval over images.

    Returns: The page.

    Raises:
        InputError: no store, nothing in it, runs that cannot be joined, or a record that cannot be read.
        Contradiction: a deterministic certificate reaches a counterexample.
    """
    with Store(store) as file:
        found, computed = networks(file), file.sessions()
    record = read_record(record_of(store))
    about = record.get("about", {})
    mine = (about.get("model_sha256"), about.get("data_sha256"))
    sources = [Source(store.name, computed, record if identity(n.settings) == mine else {}, rho) for n in found]
    chapters = [chapter(network, source) for network, source in zip(found, sources, strict=True)]
    names = list(dict.fromkeys(str(network.settings["model"]) for network in found))
    bare = [k for k, source in enumerate(sources) if not source.record]
    if bare:
        which = ", ".join(dict.fromkeys(chapters[k].title for k in bare))
        chapters.append(unmeasured(which, command_for(found[bare[0]], "report", sources[bare[0]])))
    title = "Robustness of " + (", ".join(names) if len(names) <= _NAMED else f"{len(names)} networks")
    command = f"python -m figures report --store {store.name} --rho {rho:g} --out DIR"
    text = render_page(title, tuple(chapters), level=f"{100 * (1 - rho):g} %", command=command)
    page = out / PAGE
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(page, text.encode())
    return page


def record_of(store: Path) -> Path:
    """Where what was measured beside a store's rows is kept."""
    return store.with_suffix(".panels.json")


def read_record(path: Path) -> Mapping[str, Any]:
    """The record, or {} where there is no file.

    Raises:
        InputError: the file is no such record.
    """
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not a record of a report: {error}") from error
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise InputError(f"{path} is not a record of a report in format {FORMAT}; measure again into another folder")
    return held
