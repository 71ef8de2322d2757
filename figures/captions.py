"""What a picture is about, in words made from the notes of its record: images, seeds, attacks, intervals."""

import re

from paper_repro.recipes.records import Record

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
)

ACCURACY = "Bars and shades: the hull over seeds of the exact 95 % intervals over images."
PAIRED = "Differences: paired by image, the hull over seeds of the 95 % intervals over images."
SEEDS = "Bars and shades: the least and the largest seed."


def images(record: Record) -> int | None:
    """The number of images that a record is about, where its notes tell."""
    notes = record.notes
    return len(notes["example"]) if "example" in notes else notes.get("n", notes.get("images"))


def seeds(record: Record) -> str:
    """The seeds of a record's networks: by number, or how many where the configuration does not say which."""
    count = next(iter(record.arrays.values())).shape[1]
    named = {
        tuple(re.findall(r"\d+", s)) for s in re.findall(r"seeds=\(([^)]*)\)", record.notes.get("configuration", ""))
    }
    fitting = [s for s in named if len(s) == count]
    word = "seed" if count == 1 else "seeds"
    return f"{word} {', '.join(fitting[0])}" if len(fitting) == 1 else f"{count} {word}"


def threat(record: Record) -> str:
    """Norm and budget of a record's threat, such as "Linf eps = 0.3"."""
    found = re.search(r"norm='(\w+)', eps=([^,)]+)", record.notes["threat"])
    return f"{found[1]} eps = {float(found[2]):.4g}" if found else record.notes["threat"]


def about(record: Record, n: int | None = None) -> str:
    """Images and seeds, such as "n = 500 images, seeds 0, 1, 2"."""
    n = images(record) if n is None else n
    return seeds(record) if n is None else f"n = {n} images, {seeds(record)}"


def circumstances(record: Record) -> str:
    """Attacks, threats and certifiers, as far as the notes hold them."""
    stated = [f"{key}: {_words(record.notes[key])}." for key in _STATED if key in record.notes]
    return " ".join(s[0].upper() + s[1:] for s in stated)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_words(one)}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
