"""The tab-separated per-example log in which smoothing results are published, in and out."""

import csv
import re
from collections import Counter
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path

from certify.campaign.results import Published, Results
from certify.certificate import ABSTAIN
from certify.errors import InputError

COLUMNS = ["idx", "label", "predict", "radius", "correct", "time"]
_CLOCK = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_HOUR, _MINUTE, _DAY = 3600.0, 60.0, 86400.0
_MOST_DIGITS = 17  # no float says more


def floor_decimal(value: float, digits: int) -> str:
    """A float to `digits` decimals, rounded down exactly: how a lower bound is printed.

    >>> floor_decimal(0.9999, 3), floor_decimal(0.5, 3)
    ('0.999', '0.500')
    """
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_FLOOR))


def _seconds(text: str) -> float:
    clock = _CLOCK.fullmatch(text)
    if clock is None:
        return float(text)
    days, hours, minutes, seconds = clock.groups()
    return float(days or 0) * _DAY + float(hours) * _HOUR + float(minutes) * _MINUTE + float(seconds)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a log, as printed: every cell parses, and what the cells say is not checked."""

    number: int
    example: int
    label: int
    prediction: int
    radius: float
    printed: str
    correct: int
    seconds: float


def read_log(path: str | Path) -> Published:
    """Read a published log.

    Args:
        path: A tab-separated file with the header `idx label predict radius correct time`; the time in seconds or
            as h:mm:ss.

    Raises:
        InputError: the file is missing or empty, the header differs, a cell does not parse or is out of range,
            `correct` is not 0 or 1 or contradicts label and prediction, a radius is negative, not finite, or positive
            on an abstention, or an index occurs twice. The message gives the line.
    """
    path = Path(path)
    rows: list[tuple[int, int, int, float, bool, float]] = []
    for number, cells in read_cells(path):
        line = parse(path, number, cells)
        _check(path, line)
        rows.append((line.example, line.label, line.prediction, line.radius, bool(line.correct), line.seconds))
    if not rows:
        raise InputError(f"{path}: need at least one row; got none")
    index, times = Counter(row[0] for row in rows).most_common(1)[0]
    if times > 1:
        raise InputError(f"{path}: need each index once; index {index} occurs {times} times")
    return Published.of(path.stem, rows)


def read_cells(path: Path) -> list[tuple[int, list[str]]]:
    """The cells of each row, with the row's line number.

    Raises:
        InputError: the file is missing or no text, or the header differs.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            # Quotes are letters here: none that is never closed can swallow the lines behind it.
            lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the log {path}: {error}") from error
    if not lines or lines[0] != COLUMNS:
        raise InputError(f"{path}: need the header {COLUMNS}; got {lines[0] if lines else 'an empty file'}")
    return list(enumerate(lines[1:], start=2))


def parse(path: Path, number: int, cells: list[str]) -> Line:
    """A row from its cells.

    Raises:
        InputError: a cell does not parse, or an id, a class or a time is out of range.
    """
    try:
        example, label, prediction = (int(c) for c in cells[:3])
        radius, correct, seconds = float(cells[3]), int(cells[4]), _seconds(cells[5])
        if len(cells) != len(COLUMNS):
            raise ValueError(f"{len(cells)} cells")
        if min(example, label) < 0 or prediction < ABSTAIN or max(example, label, prediction) >= 2**63:
            raise ValueError("idx, label or predict out of range")
        if not 0 <= seconds < float("inf"):
            raise ValueError("a time that is negative or not finite")
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}, line {number}: cannot read {cells!r} as {COLUMNS} ({error})") from error
    return Line(number, example, label, prediction, radius, cells[3], correct, seconds)


def _check(path: Path, line: Line) -> None:
    where, correct = f"{path}, line {line.number}", line.correct
    if correct not in (0, 1):
        raise InputError(f"{where}: need `correct` 0 or 1; got {correct} (a running count, perhaps)")
    if bool(correct) != (line.prediction == line.label):
        raise InputError(f"{where}: `correct` is {correct}, but label {line.label}, predict {line.prediction}")
    if not 0 <= line.radius < float("inf") or (line.prediction == ABSTAIN and line.radius > 0):
        raise InputError(f"{where}: need a finite radius >= 0, and 0 on abstention; got {line.printed}")


def export_log(results: Results, path: str | Path, *, digits: int = 3) -> None:
    """Write a run as a published log, radii rounded down at `digits` decimals.

    Raises:
        InputError: `digits` is out of range.
    """
    if not 0 <= digits <= _MOST_DIGITS:
        raise InputError(f"need 0 <= digits <= {_MOST_DIGITS}; got {digits!r}")
    lines = ["\t".join(COLUMNS)]
    c = results.certificate
    for i, (example, label, seconds) in enumerate(zip(results.example, results.label, results.seconds, strict=True)):
        prediction = int(c.prediction[i])
        radius = floor_decimal(float(c.radius[i]), digits)
        lines.append(f"{example}\t{label}\t{prediction}\t{radius}\t{int(prediction == label)}\t{seconds:.6f}")
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
