"""One SQLite file of certificates: a row per example and run, each run with the settings that determined its numbers.

Settings say what was computed, and on which torch: rows of one run have all of them in common. This package, numpy,
scipy and auto_LiRPA may round otherwise, or may have been mended, in another version; which ones computed a row is on
record with its session, as its environment, and a run goes on when they change.

Every row carries a digest of its cells and of its run's settings and header (see `schema`): what changed on the disk is
found, and `salvage` takes the rest over.

Results of attacks may lie in the same file, in a table and in runs of their own: see `attack_rows`.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from certify.campaign.results import Published, Results
from certify.campaign.schema import (
    APPLICATION_ID,
    ATTACKING,
    CELLS,
    CERTIFYING,
    ROWS,
    SCHEMAS,
    SEALED,
    UNSEALED_ROWS,
    Cells,
    row_digest,
)
from certify.certificate import Certificate
from certify.errors import InputError

Kind = Literal["certificate", "attack"]

IN_MEMORY = ":memory:"
_PATIENCE = 30.0  # seconds to wait for another writer
_GOES_ON = "; rows committed before are kept, and the same command goes on from them once there is room to write"
_ADVICE = {
    sqlite3.SQLITE_FULL: _GOES_ON,
    sqlite3.SQLITE_IOERR: _GOES_ON,
    sqlite3.SQLITE_BUSY: "; another process is using it, and did not let go of it in time",
    sqlite3.SQLITE_READONLY: "; need leave to write to the file and to its folder",
    sqlite3.SQLITE_CANTOPEN: "; need a file, in a folder that can be written to",
}


class Store:
    """A campaign's file. Every batch of rows is one transaction: after a kill it holds all of a batch or nothing.

    Args:
        path: The SQLite file; ":memory:" for a store that ends with the process.
        create: Make it where it is missing; otherwise a missing file is an error.

    Raises:
        InputError: the file is missing, is not a store, is of another schema or damaged; or it cannot be used, for want
            of leave to write or of room, or because another writer does not end.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        with self._intact():
            if not self.path.exists():
                if not create:
                    raise InputError(f"need an existing store; no file at {self.path}")
                self.path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite may take a relative name such as file:x?mode=memory for an address.
            name = self.path if str(self.path) == IN_MEMORY else self.path.absolute()
            self._db = sqlite3.connect(name, timeout=_PATIENCE, isolation_level=None)
        try:
            self._prepare(create)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, create: bool) -> None:
        with self._intact():
            self._db.execute("PRAGMA trusted_schema = OFF")
            if create:
                with self._transaction():  # the lock comes before the look: of two processes one creates the tables
                    if not self._application() and not self._tables():
                        self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                        self._bring_up_to_date()
            self._db.execute("PRAGMA synchronous = FULL")
            problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            application, version = self._application(), self._version()
            acting = self._db.execute("SELECT name FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchone()
        if problem != "ok":
            raise self._damaged(problem)
        if application != APPLICATION_ID:
            raise InputError(f"{self.path} is an SQLite file, but not a certificate store")
        if not 1 <= version <= len(SCHEMAS):
            raise InputError(f"{self.path}: need a schema from 1 to {len(SCHEMAS)}; got {version}")
        if acting:
            raise InputError(f"{self.path}: need tables alone, as this library writes them; got {acting[0]!r}")

    def _bring_up_to_date(self) -> None:
        """Add what later versions added, and seal the rows of earlier ones as they are, in the caller's transaction."""
        version = self._version()
        for schema in SCHEMAS[version:]:
            for statement in schema.split(";"):
                self._db.execute(statement)
        if version < SEALED:
            seal = "UPDATE certificate SET digest = ? WHERE run = ? AND example = ?"
            for run, settings, header in self._db.execute("SELECT id, settings, header FROM run").fetchall():
                rows = self._db.execute(ROWS, (run,)).fetchall()
                sealed = [(row_digest(settings, header, row[:-1]), run, row[0]) for row in rows]
                self._db.executemany(seal, sealed)
        self._db.execute(f"PRAGMA user_version = {len(SCHEMAS)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def _application(self) -> int:
        return self._db.execute("PRAGMA application_id").fetchone()[0]

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _tables(self) -> int:
        return self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]

    def _damaged(self, problem: object) -> InputError:
        return InputError(
            f"the store {self.path} is damaged ({' '.join(str(problem).split())}); nothing was written to it. "
            "Restore a copy, or certify again into a new file; certify.campaign.salvage takes over what is whole"
        )

    @contextmanager
    def _intact(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            advice = _ADVICE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "")  # the low byte is the kind of error
            raise InputError(f"cannot use the store {self.path}: {error}{advice}") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # SQLite's message may quote bytes of the file
            raise self._damaged(error) from error
        except MemoryError as error:
            raise self._damaged("SQLite was led to ask for more memory than there is") from error
        except OSError as error:
            raise InputError(f"cannot use the store {self.path}: {error}") from error

    @contextmanager
    def _rebuilding(self) -> Iterator[None]:
        """Cells that SQLite finds in order, and of which nothing can be made, are damage too."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise self._damaged(error) from error

    def open_run(self, settings: Mapping[str, Any], environment: Mapping[str, Any], *, add: bool = False) -> "Run":
        """Start or resume the run with exactly these settings.

        Args:
            settings: What determines the numbers but for versions of packages other than torch, as plain values.
            environment: Versions and hardware, recorded for each session.
            add: Allow a further run with other settings beside those in the store.

        Raises:
            InputError: the store holds other settings and `add` was not asked for, and the message names what differs;
                or it holds a run of another kind with these.
        """
        return Run(self, *self.begin("certificate", settings, environment, add=add))

    def begin(
        self, kind: Kind, settings: Mapping[str, Any], environment: Mapping[str, Any], *, add: bool
    ) -> tuple[int, int]:
        """Record a session of a run of this kind, new or resumed; see `open_run`. Other kinds do not count as others.

        Returns: The numbers of the run and of the session.

        Raises:
            InputError: as for `open_run`.
        """
        text = json.dumps(settings, sort_keys=True)
        with self._writing():
            held = self._db.execute("SELECT settings FROM run WHERE kind = ? ORDER BY id", (kind,)).fetchall()
            if (text,) not in held:
                if held and not add:
                    with self._rebuilding():
                        old = dict(json.loads(held[-1][0]))
                    raise InputError(self._difference(settings, old))
                if other := self._db.execute("SELECT kind FROM run WHERE settings = ?", (text,)).fetchone():
                    raise InputError(
                        f"the store {self.path} already holds a run of kind {other[0]!r} with exactly these settings; "
                        f"need settings that tell a run of kind {kind!r} from it, or another store"
                    )
                self._db.execute("INSERT INTO run (settings, kind) VALUES (?, ?)", (text, kind))
            (run,) = self._db.execute("SELECT id FROM run WHERE settings = ?", (text,)).fetchone()
            started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            session = self._db.execute(
                "INSERT INTO session (run, started, environment) VALUES (?, ?, ?)",
                (run, started, json.dumps(environment, sort_keys=True)),
            ).lastrowid
        return run, session or 0

    def _difference(self, new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
        keys = [k for k in sorted({*new, *old}) if new.get(k) != old.get(k)]
        lines = "; ".join(f"{k}: stored {old.get(k)!r}, asked {new.get(k)!r}" for k in keys)
        return (
            f"the store {self.path} holds a run with other settings ({lines}). Settings never mix: "
            "choose another store, or --add a second run beside it"
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk may have ended it, and a commit that failed has not
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction on a file of the present schema."""
        with self._intact(), self._transaction():
            if self._version() < len(SCHEMAS):
                self._bring_up_to_date()
            yield

    def results(self) -> list[Results]:
        """Every run that has rows, in the order in which they were begun.

        Raises:
            InputError: the file is damaged.
        """
        with self._intact(), self._rebuilding():
            runs = self._db.execute("SELECT id, settings, header FROM run WHERE header IS NOT NULL").fetchall()
            return [self._results(*row) for row in runs]

    def add_log(self, log: Published) -> None:
        """Keep a published log beside the runs.

        Raises:
            InputError: a log of that name is there already, or the file cannot be written.
        """
        columns = (log.example, log.label, log.prediction, log.radius, log.correct, log.seconds)
        with self._writing():
            if self._db.execute("SELECT 1 FROM log WHERE name = ?", (log.name,)).fetchone():
                raise InputError(f"the store {self.path} already holds a log named {log.name!r}")
            number = self._db.execute("INSERT INTO log (name) VALUES (?)", (log.name,)).lastrowid
            rows = [(number, *row) for row in zip(*(c.tolist() for c in columns), strict=True)]
            self._db.executemany("INSERT INTO published VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def published(self) -> list[Published]:
        """Every published log, in the order in which they were added.

        Raises:
            InputError: the file is damaged.
        """
        query = "SELECT example, label, prediction, radius, correct, seconds FROM published WHERE log = ? ORDER BY 1"
        with self._intact(), self._rebuilding():
            return [
                Published.of(name, self._db.execute(query, (number,)).fetchall())
                for number, name in self._db.execute("SELECT id, name FROM log ORDER BY id").fetchall()
            ]

    def sessions(self) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
        """When and on what rows were computed: (start in UTC, environment) by the run's settings as sorted JSON.

        A session that found all rows there already is left out.

        Raises:
            InputError: the file is damaged.
        """
        held: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        with self._intact(), self._rebuilding():
            found = self._db.execute(CERTIFYING).fetchall()
            if self._version() > 1:  # the first had no attacks
                found += self._db.execute(ATTACKING).fetchall()
            for settings, started, environment in found:
                held.setdefault(settings, []).append((started, json.loads(environment)))
        return held

    def _results(self, run: int, settings: str, header: str) -> Results:
        sealed = self._version() >= SEALED
        rows = self._db.execute(ROWS if sealed else UNSEALED_ROWS, (run,)).fetchall()
        for *cells, digest in rows:
            if sealed and digest != row_digest(settings, header, cells):
                raise ValueError(f"example {cells[0]} of run {run} is not as it was written")
        names = CELLS.split(", ")
        records: list[dict[str, Any]] = [dict(zip(names, row[:-1], strict=True)) for row in rows]
        for r in records:
            r["counts"] = None if r["counts"] is None else json.loads(r["counts"])
        return Results(
            settings=dict(json.loads(settings)),
            certificate=Certificate.from_record(json.loads(header), records),
            example=np.array([r["example"] for r in records], np.int64),
            label=np.array([r["label"] for r in records], np.int64),
            seconds=np.array([r["seconds"] for r in records], np.float64),
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a store, open for appending."""

    store: Store
    id: int
    session: int

    def done(self) -> set[int]:
        """The examples that have a row.

        Raises:
            InputError: the file is damaged, or cannot be read.
        """
        with self.store._intact():
            return {e for (e,) in self.store._db.execute("SELECT example FROM certificate WHERE run = ?", (self.id,))}

    def append(self, certificate: Certificate, examples: Sequence[int], labels: Sequence[int], seconds: float) -> None:
        """Write one batch as one transaction; `seconds` is its wall clock, taken as 0 where a clock ran backwards.

        A row that is there already stays as it is: the same settings give the same numbers.

        Raises:
            InputError: lengths differ, or the file cannot be written.
        """
        if not len(certificate) == len(examples) == len(labels):
            raise InputError(f"need as many examples and labels as rows, {len(certificate)}; got {len(examples)}")
        each = max(0.0, seconds) / len(examples)
        rows: list[Cells] = [
            (
                example,
                label,
                r["prediction"],
                r["radius"] + 0.0,  # SQLite keeps no negative zero
                r["samples"],
                None if r["counts"] is None else json.dumps(r["counts"]),
                r["w"],
                each,
            )
            for example, label, r in zip(examples, labels, certificate.records(), strict=True)
        ]
        self.write(json.dumps(certificate.header(), sort_keys=True), rows)

    def write(self, header: str, rows: Sequence[Cells]) -> None:
        """Write rows as they are to be stored, as one transaction; rows that are there already stay.

        Args:
            header: JSON of `Certificate.header()`.
            rows: See `Cells`.

        Raises:
            InputError: the run has another header, or the file cannot be written.
        """
        with self.store._writing():
            db = self.store._db
            db.execute("UPDATE run SET header = ? WHERE id = ? AND header IS NULL", (header, self.id))
            settings, held = db.execute("SELECT settings, header FROM run WHERE id = ?", (self.id,)).fetchone()
            if held != header:
                raise InputError(f"a run has one kind of certificate; this batch is {header}")
            sealed = [(self.id, *row, self.session, row_digest(settings, header, row)) for row in rows]
            marks = ", ".join("?" * 11)
            db.executemany(f"INSERT INTO certificate VALUES ({marks}) ON CONFLICT DO NOTHING", sealed)
