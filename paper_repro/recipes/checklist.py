"""The checklist of gradient masking as a record and a table: a verdict for every check, network and seed."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.masking import MaskingReport
from paper_repro.recipes.recipe import Table
from paper_repro.recipes.records import Record, Records, gather
from paper_repro.recipes.statistics import Measured, exactly

_VERDICTS = ("passes", "inconclusive", "flagged")
_WORDS = ("passed", "open", "flagged")
OPEN = _VERDICTS.index("inconclusive")


def masking_record(
    names: Sequence[str], seeds: Sequence[int], look: Callable[[str, int], MaskingReport], notes: Mapping[str, Any]
) -> Record:
    """For every name, seed and check whether it was passed (0), open (1) or flagged (2)."""
    checks: list[str] = []

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        found = look(name, seed).checks
        checks[:] = [f"{check.number} {check.name}" for check in found]
        return {"verdict": np.array([_VERDICTS.index(check.verdict) for check in found])}

    return Record(gather(names, seeds, measure), {"names": list(names), "checks": checks, **notes})


def masking_table(records: Records) -> Table:
    """The table of a record `masking`, whose `verdict` is (names, seeds, checks)."""
    record = records["masking"]
    body = []
    for k, check in enumerate(record.notes["checks"]):
        verdicts = [record.of("verdict", name)[:, k] for name in record.notes["names"]]
        body.append([check, *(", ".join(_WORDS[v] for v in column) for column in verdicts)])
    return ["check", *(f"{name}, by seed" for name in record.notes["names"])], body


def flags(records: Records, name: str) -> Measured:
    """How many checks of a network are flagged, over all seeds."""
    return exactly(float((records["masking"].of("verdict", name) == _VERDICTS.index("flagged")).sum()))
