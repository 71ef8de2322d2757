"""What a page of a report is made of, and how it becomes HTML."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATE = "report.html.j2"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text. A long one scrolls in a window of its own."""

    caption: str
    header: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    long: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A data: address, what it shows for those who cannot see it, and how it is read."""

    address: str
    shows: str
    caption: str


@dataclass(frozen=True, slots=True)
class Missing:
    """What is not there, and the command that would add it; "" where there is none."""

    text: str
    command: str = ""


@dataclass(frozen=True, slots=True)
class Details:
    """Names and values, folded away."""

    summary: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it, in this order."""

    title: str
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: tuple[Missing, ...] = ()
    details: tuple[Details, ...] = ()


@dataclass(frozen=True, slots=True)
class Chapter:
    """One network: its name, the main numbers, and the sections."""

    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]


def render_page(title: str, chapters: tuple[Chapter, ...], *, level: str, command: str) -> str:
    """One HTML document that needs nothing else; all text in it is escaped.

    Args:
        title: Of the document.
        chapters: In order.
        level: Confidence of each interval, such as "95 %".
        command: What makes this page again.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(title=title, chapters=chapters, level=level, command=command)
