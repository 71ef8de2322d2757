"""What a picture is about, in words made from the notes of its record: images, seeds, attacks, intervals."""

import re
from collections.abc import Callable
from typing import NamedTuple

from paper_repro.recipes.records import Record, Records, short_threat

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

HULL = "{hull}"
"""Stands in a caption for "the hull over seeds of the", or for "the" where there is one seed; `Caption` puts it in."""
CENTRES = "{centres}"
"""Stands likewise for "Marks and lines are means over seeds. ", or for nothing."""
RANGE = "{range}"
"""Likewise for the least and the largest seed."""
PAIRED = f"Differences: paired by image, {HULL} 95 % intervals over images."
BESIDE = "Marks stand at their true places, bars a few points beside them."


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
    """Norm and budget of a record's threat, such as "Linf eps = 0.3"; from its notes, else from the configuration."""
    return short_threat(record.notes.get("threat") or setting(record, "threat") or "")


def setting(record: Record, field: str) -> str | None:
    """The value of a field of the recorded configuration, as it is written there; None where it holds none."""
    fields = _fields(record.notes.get("configuration", "").partition("(")[2])
    return dict(part.partition("=")[::2] for part in fields).get(field)


def intervals(drawn: str, kind: str = "exact") -> str:
    """What bars or shades over images are, and what is in their middle, of one seed or of several."""
    return f"{CENTRES}{drawn}: {HULL} {kind} 95 % intervals over images."


def ranges(drawn: str) -> str:
    """What bars or shades over seeds are, and what is in their middle."""
    return f"{CENTRES}{drawn}: {RANGE}."


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
    stated = [f"{key}: {words(record.notes[key])}." for key in _STATED if key in record.notes]
    return " ".join(s[0].upper() + s[1:] for s in stated)


def words(value: object) -> str:
    """A note as text; of several settings of one method, what they share is said once."""
    if isinstance(value, dict):
        return _shared(value) or "; ".join(f"{key}: {words(one)}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shared(methods: dict[str, object]) -> str | None:
    """Several settings of one method: what they share, then what they do not; None for other dictionaries."""
    found = [re.fullmatch(r"(\w+)\((.*)\)", str(method)) for method in methods.values()]
    calls = [(call[1], _fields(call[2])) for call in found if call]
    if len(calls) < max(2, len(methods)) or len({(name, len(fields)) for name, fields in calls}) > 1:
        return None
    columns = list(zip(*(fields for _, fields in calls), strict=True))
    same = [column[0] for column in columns if len(set(column)) == 1]
    users: dict[str, list[str]] = {}
    for k, key in enumerate(methods):
        own = ", ".join(column[k] for column in columns if len(set(column)) > 1)
        users.setdefault(own, []).append(key)
    rest = "; ".join(f"{own} for {' and '.join(keys)}" for own, keys in users.items() if own)
    return f"{calls[0][0]}({', '.join(same)}){f', with {rest}' if rest else ''}"


def _fields(text: str) -> list[str]:
    """The parts between a call's commas, from the start of the text to the bracket that ends the call."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            break
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


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
        for gap, words in _of_seeds(len(each_seed(record))).items():
            says = says.replace(gap, words)
        return f"{says} Here: {about(record, self.counted(record))}. {circumstances(record)}".rstrip()


def _of_seeds(count: int) -> dict[str, str]:
    """What the gaps of a caption hold, with so many seeds."""
    if count == 1:
        return {HULL: "the", CENTRES: "", RANGE: "none, for there is one seed"}
    return {
        HULL: "the hull over seeds of the",
        CENTRES: "Marks and lines are means over seeds. ",
        RANGE: "the least and the largest seed",
    }
