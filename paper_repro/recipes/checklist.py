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
OPEN, FLAGGED = _VERDICTS.index("inconclusive"), _VERDICTS.index("flagged")
_EVIDENCE = "evidence"


def masking_record(
    names: Sequence[str], seeds: Sequence[int], look: Callable[[str, int], MaskingReport], notes: Mapping[str, Any]
) -> Record:
    """For every name, seed and check whether it was passed (0), open (1) or flagged (2), and the evidence in words."""
    checks: list[str] = []
    evidence: dict[str, list[list[str]]] = {name: [] for name in names}  # per seed and check

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        found = look(name, seed).checks
        checks[:] = [f"{check.number} {check.name}" for check in found]
        evidence[name].append([check.evidence for check in found])
        return {"verdict": np.array([_VERDICTS.index(check.verdict) for check in found])}

    return Record(gather(names, seeds, measure), {"names": list(names), "checks": checks, _EVIDENCE: evidence, **notes})


def masking_table(records: Records) -> Table:
    """The table of a record `masking`, whose `verdict` is (names, seeds, checks); a flag has its evidence beside it."""
    record = records["masking"]
    names, evidence = record.notes["names"], record.notes.get(_EVIDENCE)
    body = []
    for k, check in enumerate(record.notes["checks"]):
        verdicts = {name: record.of("verdict", name)[:, k].tolist() for name in names}
        row = [check, *(", ".join(_WORDS[v] for v in column) for column in verdicts.values())]
        if evidence is not None:
            flagged = [(name, s) for name, column in verdicts.items() for s, v in enumerate(column) if v == FLAGGED]
            # Its first clause says what was found; the record holds the rest, which attacks and how many of each.
            row.append(
                "; ".join(f"{name}, {s + 1}. seed: {evidence[name][s][k].partition(';')[0]}" for name, s in flagged)
            )
        body.append(row)
    header = ["check", *(f"{name}, by seed" for name in names)]
    return [*header, "evidence of flags"] if evidence is not None else header, body


def flags(records: Records, name: str) -> Measured:
    """How many checks of a network are flagged, over all seeds."""
    return exactly(float((records["masking"].of("verdict", name) == FLAGGED).sum()))
