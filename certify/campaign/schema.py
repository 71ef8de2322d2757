"""The tables of a store, version by version, and the digest that each row of certificates carries."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

APPLICATION_ID = 0x52_52_61_64  # "RRad"

_SCHEMA_1 = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    settings TEXT NOT NULL UNIQUE,  -- JSON: what determines the numbers, but for versions other than torch's
    header TEXT                     -- JSON: Certificate.header(), known with the first rows
);
CREATE TABLE session (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run,
    started TEXT NOT NULL,          -- UTC
    environment TEXT NOT NULL       -- JSON: versions and hardware
);
CREATE TABLE certificate (
    run INTEGER NOT NULL REFERENCES run,
    example INTEGER NOT NULL,       -- the example's id in its data set
    label INTEGER NOT NULL,
    prediction INTEGER NOT NULL,    -- -1 abstains
    radius REAL NOT NULL,
    samples INTEGER NOT NULL,
    counts TEXT,                    -- JSON list of votes per class
    w REAL,                         -- the one uniform draw of a randomised bound
    seconds REAL NOT NULL,
    session INTEGER NOT NULL REFERENCES session,
    PRIMARY KEY (run, example)
) WITHOUT ROWID;
CREATE TABLE log (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);
CREATE TABLE published (            -- somebody's printed results: never a certificate
    log INTEGER NOT NULL REFERENCES log,
    example INTEGER NOT NULL,
    label INTEGER NOT NULL,
    prediction INTEGER NOT NULL,
    radius REAL NOT NULL,
    correct INTEGER NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (log, example)
) WITHOUT ROWID;
"""
_SCHEMA_2 = """
ALTER TABLE run ADD COLUMN kind TEXT NOT NULL DEFAULT 'certificate';
CREATE TABLE attack (               -- what attacks found: upper bounds, never a certificate
    run INTEGER NOT NULL REFERENCES run,
    example INTEGER NOT NULL,
    label INTEGER NOT NULL,
    prediction INTEGER NOT NULL,    -- of the input as it is
    distance REAL NOT NULL,         -- infinite where unbroken, 0 where misclassified as it is
    broken_by INTEGER,              -- place in the ladder, from 0, of the attack that found it, or NULL
    forwards TEXT NOT NULL,         -- JSON list, one count per attack of the ladder
    backwards TEXT NOT NULL,
    seconds REAL NOT NULL,
    session INTEGER NOT NULL REFERENCES session,
    PRIMARY KEY (run, example)
) WITHOUT ROWID;
"""
_SCHEMA_3 = "ALTER TABLE certificate ADD COLUMN digest BLOB"  # of row_digest
SCHEMAS = (_SCHEMA_1, _SCHEMA_2, _SCHEMA_3)
"""What each version adds. Earlier ones are still read; the first transaction that writes brings a file up to date."""
SEALED = 3
"""The first version whose rows have digests."""

CELLS = "example, label, prediction, radius, samples, counts, w, seconds"
ROWS = f"SELECT {CELLS}, digest FROM certificate WHERE run = ? ORDER BY example"
UNSEALED_ROWS = f"SELECT {CELLS}, NULL FROM certificate WHERE run = ? ORDER BY example"
_SESSIONS = "SELECT settings, started, environment FROM session JOIN run ON run.id = session.run WHERE session.id IN "
CERTIFYING = f"{_SESSIONS} (SELECT session FROM certificate) ORDER BY session.id"
ATTACKING = f"{_SESSIONS} (SELECT session FROM attack) ORDER BY session.id"

Cells = tuple[int, int, int, float, int, str | None, float | None, float]
"""A row of certificates as it is stored: `CELLS`."""


def row_digest(settings: str, header: str | None, cells: Sequence[Any]) -> bytes:
    """SHA-256 of a row together with what its run says of it.

    It finds what a disk changed. It is no signature: whoever changes a row on purpose can make its digest too.

    Args:
        settings: The run's, as stored.
        header: The run's, as stored.
        cells: The row's, as stored.
    """
    return hashlib.sha256(json.dumps([settings, header, *cells]).encode()).digest()
