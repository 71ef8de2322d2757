"""What is whole in a damaged store, taken over into a new one."""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certify.campaign.schema import CELLS, SEALED, row_digest
from certify.campaign.store import Store
from certify.errors import InputError

# SQLite's message may quote bytes of the file, and a length that is wrong may have it ask for too much memory.
_UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError, MemoryError)
_RUNS = (
    "SELECT id, settings, header FROM run WHERE header IS NOT NULL AND kind = 'certificate' ORDER BY id",
    "SELECT id, settings, header FROM run WHERE header IS NOT NULL AND kind = 'certificate' ORDER BY id DESC",
)
_ROWS = (
    f"SELECT {CELLS}, digest FROM certificate WHERE run = ? ORDER BY example",
    f"SELECT {CELLS}, digest FROM certificate WHERE run = ? ORDER BY example DESC",
)


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What became of a damaged store.

    Attributes:
        kept: Rows that were taken over, each with the digest that was stored with it.
        refused: Rows that could be read, and are not as they were written.
        complete: Whether the file could be read from end to end, so that no row is missing but the refused.
    """

    kept: int
    refused: int
    complete: bool


def salvage(damaged: str | Path, out: str | Path) -> Salvaged:
    """Take the certificates that are as they were written from a damaged store over into a new one.

    Every run is read from both ends, up to the damage. The same campaign on the new store computes what is missing.
    Left behind are results of attacks and published logs, which have no digests, and the environments of the sessions.

    Args:
        damaged: A store of which SQLite can still read the schema; it is not written to.
        out: The new file.

    Raises:
        InputError: there is no such store or nothing to be read from it, its rows have no digests yet, or `out` exists.
    """
    damaged, out = Path(damaged), Path(out)
    if not damaged.is_file():
        raise InputError(f"need an existing store; no file at {damaged}")
    if out.exists():
        raise InputError(f"need a new file for what is whole; {out} exists")
    try:
        with closing(sqlite3.connect(f"{damaged.absolute().as_uri()}?mode=ro", uri=True)) as source:
            # Bytes that are no text must not end the reading: the digest refuses their row.
            source.text_factory = lambda raw: raw.decode("utf-8", "replace")
            if source.execute("PRAGMA user_version").fetchone()[0] < SEALED:
                raise InputError(
                    f"need rows with digests, which stores have from schema {SEALED} on; {damaged} has none"
                )
            runs, complete = _from_both_ends(source, _RUNS, ())
            found = [(run, *_from_both_ends(source, _ROWS, run[:1])) for run in runs]
    except _UNREADABLE as error:
        raise InputError(f"nothing can be read from {damaged}: {error}") from error
    if not runs:
        raise InputError(f"nothing can be read from {damaged}: no run of certificates is found in it")
    kept, read = 0, 0
    with Store(out, create=True) as store:
        for (_, settings, header), rows, whole in found:
            good = sorted(r[:-1] for r in rows if r[-1] == row_digest(settings, header, r[:-1]))
            if good:
                run = store.open_run(json.loads(settings), {"salvaged_from": damaged.name}, add=True)
                run.write(header, good)
            kept, read, complete = kept + len(good), read + len(rows), complete and whole
    return Salvaged(kept, read - kept, complete)


def _from_both_ends(
    source: sqlite3.Connection, queries: tuple[str, str], parameters: Sequence[Any]
) -> tuple[list[tuple[Any, ...]], bool]:
    """The rows of a query up to where it fails, and of its reverse up to there; and whether it did not fail."""
    found: dict[Any, tuple[Any, ...]] = {}
    for number, query in enumerate(queries):
        try:
            for row in source.execute(query, parameters):
                found.setdefault(row[0], row)
        except _UNREADABLE:
            continue
        return list(found.values()), number == 0
    return list(found.values()), False
