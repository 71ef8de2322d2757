"""What the fault tests ask of a store, and how they harm one."""

import sqlite3
from contextlib import closing
from pathlib import Path

from certify.campaign import Results, Store
from certify.campaign.schema import ROWS, row_digest

Row = tuple[int, int, float, int, tuple[int, ...]]


def rows(results: Results) -> dict[int, Row]:
    """All that is certified, by example."""
    c = results.certificate
    assert c.counts is not None
    columns = (results.label, c.prediction, c.radius, c.samples, c.counts)
    return {
        int(example): (int(y), int(p), float(r), int(n), tuple(votes.tolist()))
        for example, y, p, r, n, votes in zip(results.example, *columns, strict=True)
    }


def held(path: Path) -> dict[int, Row]:
    """The rows of a store of one run; none where a kill came before the first."""
    if not path.exists():
        return {}
    with Store(path, create=True) as store:  # as the next session opens it: an empty file is no error then
        found = store.results()
    return rows(found[0]) if found else {}


def count(path: Path) -> int:
    """How many rows the table has, doubles included."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT count(*) FROM certificate").fetchone()[0]


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def reseal(path: Path) -> None:
    """Give every row the digest of what it now says: what a forger can do, and a failing disk cannot."""
    with closing(sqlite3.connect(path)) as database, database:
        for run, settings, header in database.execute("SELECT id, settings, header FROM run").fetchall():
            for *cells, _ in database.execute(ROWS, (run,)).fetchall():
                seal = "UPDATE certificate SET digest = ? WHERE run = ? AND example = ?"
                database.execute(seal, (row_digest(settings, header, cells), run, cells[0]))
