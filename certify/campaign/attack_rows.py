"""Results of attacks in a store: a row per example and run, beside the certificates and never among them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.accuracy import FloatArray
from certify.campaign.results import IntArray
from certify.campaign.store import Store
from certify.errors import InputError

UNBROKEN = -1
"""The place in the ladder of an example that no attack broke, or that was misclassified as it is."""

_COLUMNS = ("example", "label", "prediction", "distance", "broken_by", "forwards", "backwards", "seconds")


@dataclass(frozen=True, slots=True, eq=False)
class AttackRows:
    """What a ladder of k attacks did to m examples. Not a Certificate: each row is an upper bound, or nothing.

    Attributes:
        example: (m,) ids in the data set.
        label: (m,) int64.
        prediction: (m,) int64, of the inputs as they are.
        distance: (m,) float64, of the nearest counterexample found; 0 where misclassified as it is, +inf where none.
        broken_by: (m,) int64, place in the ladder of the attack that found it, from 0; UNBROKEN for none.
        forwards: (m, k) int64, inputs classified by each attack; 0 where it did not meet the example.
        backwards: (m, k) int64, input gradients likewise.
        seconds: (m,) wall clock per example.

    Raises:
        InputError: lengths differ, or a distance does not fit what broke the example.
    """

    example: IntArray
    label: IntArray
    prediction: IntArray
    distance: FloatArray
    broken_by: IntArray
    forwards: IntArray
    backwards: IntArray
    seconds: FloatArray

    def __post_init__(self) -> None:
        m = len(self.example)
        for name in _COLUMNS:
            if len(getattr(self, name)) != m:
                raise InputError(f"need as many values of {name} as examples, {m}; got {len(getattr(self, name))}")
        by_attack = (self.prediction == self.label) & np.isfinite(self.distance)
        expected = np.where(by_attack, self.broken_by >= 0, self.broken_by == UNBROKEN)
        right = expected & (self.distance >= 0) & ((self.distance == 0) >= (self.prediction != self.label))
        if not right.all():
            i = int(np.flatnonzero(~right)[0])
            raise InputError(
                "need distance 0 where misclassified, and an attack where a correct example broke; got example "
                f"{self.example[i]} with label {self.label[i]}, prediction {self.prediction[i]}, "
                f"distance {self.distance[i]}, broken by {self.broken_by[i]}"
            )

    def __len__(self) -> int:
        return len(self.example)

    @property
    def correct(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """(m,) whether each input is classified correctly as it is."""
        return self.prediction == self.label

    @property
    def robust(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """(m,) whether each input survived every attack."""
        return np.isinf(self.distance)


@dataclass(frozen=True, slots=True, eq=False)
class AttackResults:
    """The stored rows of one run of attacks, in order of example.

    Attributes:
        settings: What determined the numbers; for versions other than torch's see `Store.sessions`.
        rows: The rows of all sessions.
    """

    settings: Mapping[str, Any]
    rows: AttackRows

    @property
    def name(self) -> str:
        """What a table calls this run."""
        return f"{self.settings['model'].rpartition(':')[2]} under attack"


@dataclass(frozen=True, slots=True)
class AttackRun:
    """One run of attacks in a store, open for appending."""

    store: Store
    id: int
    session: int

    def done(self) -> set[int]:
        """The examples that have a row."""
        with self.store._intact():
            return {e for (e,) in self.store._db.execute("SELECT example FROM attack WHERE run = ?", (self.id,))}

    def append(self, rows: AttackRows) -> None:
        """Write one block of rows as one transaction; a row that is there already stays as it is.

        Raises:
            InputError: the file cannot be written.
        """
        columns = (rows.example, rows.label, rows.prediction, rows.distance)
        plain = zip(*(c.tolist() for c in columns), strict=True)
        written = [
            (
                self.id,
                *row,
                None if rows.broken_by[i] == UNBROKEN else int(rows.broken_by[i]),
                json.dumps(rows.forwards[i].tolist()),
                json.dumps(rows.backwards[i].tolist()),
                float(rows.seconds[i]),
                self.session,
            )
            for i, row in enumerate(plain)
        ]
        with self.store._writing():
            marks = ", ".join("?" * 10)
            self.store._db.executemany(f"INSERT INTO attack VALUES ({marks}) ON CONFLICT DO NOTHING", written)

    def results(self) -> AttackResults:
        """All rows of this run, those of earlier sessions included.

        Raises:
            InputError: the file is damaged, or holds no row of this run yet.
        """
        with self.store._intact():
            query = "SELECT settings FROM run WHERE id = ?"
            (settings,) = self.store._db.execute(query, (self.id,)).fetchone()
            rows = _rows(self.store, self.id)
        if not rows:
            raise InputError(f"the run in {self.store.path} holds no row yet")
        with self.store._rebuilding():
            return AttackResults(json.loads(settings), _columns(rows))


def open_attack_run(
    store: Store, settings: Mapping[str, Any], environment: Mapping[str, Any], *, add: bool = False
) -> AttackRun:
    """Start or resume the run of attacks with exactly these settings; runs of certificates do not count as others.

    Args:
        store: Open for writing.
        settings: What determines the numbers but for versions of packages other than torch, as plain values.
        environment: Versions and hardware, recorded for each session.
        add: Allow a further run of attacks with other settings beside those in the store.

    Raises:
        InputError: the store holds other settings and `add` was not asked for, and the message names what differs; or
            it holds a run of certificates with these.
    """
    return AttackRun(store, *store.begin("attack", settings, environment, add=add))


def attack_results(store: Store) -> list[AttackResults]:
    """Every run of attacks that has rows, in the order in which they were begun; none in a file of schema 1.

    Raises:
        InputError: the file is damaged.
    """
    with store._intact():
        if not store._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'attack'").fetchone():
            return []
        runs = store._db.execute("SELECT id, settings FROM run WHERE kind = 'attack' ORDER BY id").fetchall()
        found = [(settings, _rows(store, run)) for run, settings in runs]
    with store._rebuilding():
        return [AttackResults(json.loads(settings), _columns(rows)) for settings, rows in found if rows]


def _rows(store: Store, run: int) -> list[tuple[Any, ...]]:
    query = f"SELECT {', '.join(_COLUMNS)} FROM attack WHERE run = ? ORDER BY example"
    return store._db.execute(query, (run,)).fetchall()


def _columns(rows: Sequence[tuple[Any, ...]]) -> AttackRows:
    example, label, prediction, distance, broken_by, forwards, backwards, seconds = zip(*rows, strict=True)
    return AttackRows(
        example=np.array(example, np.int64),
        label=np.array(label, np.int64),
        prediction=np.array(prediction, np.int64),
        distance=np.array(distance, np.float64),
        broken_by=np.array([UNBROKEN if b is None else b for b in broken_by], np.int64),
        forwards=np.array([json.loads(text) for text in forwards], np.int64),
        backwards=np.array([json.loads(text) for text in backwards], np.int64),
        seconds=np.array(seconds, np.float64),
    )
