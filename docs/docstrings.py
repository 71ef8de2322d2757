"""Sections of one paragraph, as the docstrings write them, in a form that the parser of Google docstrings takes.

`Proves: text` becomes a box of its own; `Returns: text` and `Source: text` get a bold title. Without this, the parser
reads each of them as part of the paragraph before.
"""

import re
from typing import Any

import griffe

_PARAGRAPH = re.compile(
    r"^(?P<title>Proves|Returns|Source): (?P<text>.*(?:\n(?!\s*\n|\w[\w ]*:\s*\n).+)*)", re.MULTILINE
)


def rewritten(text: str) -> str:
    """The docstring with its one-paragraph sections opened up."""

    def section(match: re.Match[str]) -> str:
        lines = [line.strip() for line in match["text"].splitlines()]
        if match["title"] == "Proves":
            return "\n".join(["", "Proves:", *(f"    {line}" for line in lines), ""])
        return "\n".join(["", f"**{match['title']}.** {lines[0]}", *lines[1:], ""])

    return _PARAGRAPH.sub(section, text)


class Sections(griffe.Extension):
    """Rewrites every docstring once, before anything parses it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)
