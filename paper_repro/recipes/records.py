"""What stages leave behind: one npz file each, from which every table and every claim is worked out again."""

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from analysis.records import read_record, write_record

NAMES, ROLES = "names", "roles"


class NotRecorded(Exception):
    """What a claim or a table asks for is not in the records."""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """Arrays, and notes on them.

    Attributes:
        arrays: By name. Where the notes have `names`, these name the first axis of every array with per-network rows.
        notes: Plain values: `names`, `roles` from what a claim calls a row to its name, and what the stage adds.
    """

    arrays: Mapping[str, NDArray[Any]]
    notes: Mapping[str, Any]

    def of(self, array: str, name: str) -> NDArray[Any]:
        """The rows of one name, or of what plays that role: the first axis taken away.

        Raises:
            NotRecorded: there is no such array, name or role.
        """
        names, actual = self.notes[NAMES], self.notes.get(ROLES, {}).get(name, name)
        if array not in self.arrays or actual not in names:
            raise NotRecorded(f"no {array} of {name!r} is recorded")
        return self.arrays[array][names.index(actual)]


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a results folder."""

    folder: Path

    def path(self, stage: str) -> Path:
        """Where a stage's record is, or would be."""
        return self.folder / f"{stage}.npz"

    def has(self, stage: str) -> bool:
        """Whether a stage has been finished."""
        return self.path(stage).is_file()

    def __getitem__(self, stage: str) -> Record:
        """The record of a stage.

        Raises:
            NotRecorded: the stage has none.
            InputError: its file is damaged.
        """
        if not self.has(stage):
            raise NotRecorded(f"no record of {stage} in {self.folder.name}")
        return Record(*read_record(self.path(stage)))

    def write(self, stage: str, record: Record, provenance: Mapping[str, Any]) -> None:
        """Write a stage's record, so that after a kill it is there as a whole or not at all."""
        partial = self.folder / f"{stage}.partial.npz"
        arrays = {name: torch.as_tensor(np.ascontiguousarray(value)) for name, value in record.arrays.items()}
        write_record(partial, arrays, {**record.notes, **provenance})
        os.replace(partial, self.path(stage))


def short_threat(stated: str) -> str:
    """Norm and budget of what a threat prints as, such as "Linf eps = 0.3"; text of another form as it is."""
    found = re.search(r"norm='(\w+)', eps=([^,)]+)", stated)
    return f"{found[1]} eps = {float(found[2]):.4g}" if found else stated


def gather(
    names: Sequence[str], seeds: Sequence[int], measure: Callable[[str, int], Mapping[str, ArrayLike]]
) -> dict[str, NDArray[Any]]:
    """Measure every name with every seed, and stack what comes out to arrays (names, seeds, ...).

    Every cell that is done leaves a line on standard error, with the time left if all take as long.
    """
    rows: list[list[Mapping[str, ArrayLike]]] = []
    total, started = len(names) * len(seeds), time.monotonic()
    for name in names:
        rows.append([])
        for seed in seeds:
            rows[-1].append(measure(name, seed))
            done = len(seeds) * (len(rows) - 1) + len(rows[-1])
            left = (time.monotonic() - started) / done * (total - done)
            print(f"{name}, seed {seed}: {done}/{total} {left:.0f} s left", file=sys.stderr, flush=True)
    return {key: np.array([[np.asarray(cell[key]) for cell in row] for row in rows]) for key in rows[0][0]}
