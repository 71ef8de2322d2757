"""What a picture is about, in words made from the notes of its record: images, seeds, attacks, intervals."""

import re
from collections.abc import Callable
from typing import NamedTuple

from paper_repro.recipes.records import Record, Records

_STATED = (
    "threat",
    "ladder",
    "attacks",
    "attack on g",
    "attack on f",
    "smoothing",
    "certifiers",
    "black box",
    "lanczos",
    "method",
    "effort",
)

Counted = Callable[[Record], str | None]
"""Says what n of a record is, such as "500 images"."""

ACCURACY = "Bars and shades: the hull over seeds of the exact 95 % intervals over images."
PAIRED = "Differences: paired by image, the hull over seeds of the 95 % intervals over images."
SEEDS = "Bars and shades: the least and the largest seed."
SPREAD_OUT = "Marks of one budget stand side by side."


def images(record: Record, what: str = "images") -> str | None:
    """How many images a record is about, such as "500 images", where its notes tell."""
    notes = record.notes
    n = len(notes["example"]) if "example" in notes else notes.get("n", notes.get("images"))
    return None if n is None else f"{n} {what}"


def columns(record: Record, array: str, what: str = "images") -> str:
    """The same of a record whose notes do not tell, from the last axis of an array."""
    return f"{record.arrays[array].shape[-1]} {what}"


def configured(record: Record, field: str, what: str = "images") -> str | None:
    """The same from a whole number of the recorded configuration; None where it holds no such field."""
    found = re.search(rf"\b{field}=(None\b|\d+)", record.notes.get("configuration", ""))
    if found is None:
        return None
    return f"{'all' if found[1] == 'None' else found[1]} {what}"


def seeds(record: Record) -> str:
    """The seeds of a record's networks: by number, or how many where the configuration does not say which."""
    count, named = _seeds(record)
    word = "seed" if count == 1 else "seeds"
    return f"{word} {', '.join(named)}" if named else f"{count} {word}"


def each_seed(record: Record) -> list[str]:
    """A name for each of them, likewise."""
    count, named = _seeds(record)
    return [f"seed {s}" for s in named] or [f"seed {k + 1} of {count}" for k in range(count)]


def _seeds(record: Record) -> tuple[int, tuple[str, ...]]:
    """How many there are, and which; the latter empty where the configuration does not say."""
    count = next(iter(record.arrays.values())).shape[1]
    named = {
        tuple(re.findall(r"\d+", s)) for s in re.findall(r"seeds=\(([^)]*)\)", record.notes.get("configuration", ""))
    }
    fitting = [s for s in named if len(s) == count]
    return count, fitting[0] if len(fitting) == 1 else ()


def threat(record: Record) -> str:
    """Norm and budget of a record's threat, such as "Linf eps = 0.3"."""
    found = re.search(r"norm='(\w+)', eps=([^,)]+)", record.notes["threat"])
    return f"{found[1]} eps = {float(found[2]):.4g}" if found else record.notes["threat"]


def about(record: Record, counted: str | None = None) -> str:
    """What n is and which seeds, such as "n = 500 images, seeds 0, 1, 2".

    Args:
        record: Of a stage.
        counted: What is counted, such as "20 test images"; None for the images that the notes tell.
    """
    counted = images(record) if counted is None else counted
    return seeds(record) if counted is None else f"n = {counted}, {seeds(record)}"


def circumstances(record: Record) -> str:
    """Attacks, threats and certifiers, as far as the notes hold them."""
    stated = [f"{key}: {_words(record.notes[key])}." for key in _STATED if key in record.notes]
    return " ".join(s[0].upper() + s[1:] for s in stated)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(one)}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


class Caption(NamedTuple):
    """What the index says of a table.

    `stage` is the record whose images, seeds and attacks it tells, `says` what there is to see and what its intervals
    are, `counted` what n is.
    """

    stage: str
    says: str | Callable[[Record], str]
    counted: Counted = images

    def text(self, records: Records) -> str:
        """What is shown, of how many images and which seeds, under which attacks."""
        record = records[self.stage]
        says = self.says if isinstance(self.says, str) else self.says(record)
        if self.stage.endswith("cost"):
            return says
        return f"{says} Here: {about(record, self.counted(record))}. {circumstances(record)}".rstrip()
