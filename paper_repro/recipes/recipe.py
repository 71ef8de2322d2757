"""What a recipe is: a paper's configuration, stages that write records, and claims judged from the records alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from certify import InputError
from paper_repro.recipes.bench import Bench
from paper_repro.recipes.records import NotRecorded, Record, Records
from paper_repro.recipes.statistics import Measured

Scale = Literal["smoke", "small", "lenet", "fashion", "cifar", "thorough", "paper", "table"]
Tag = Literal["A", "B", "C", "D"]
State = Literal["reproduced", "deviates", "not run"]

SCALES: dict[str, str] = {
    "smoke": "CPU, under a minute",
    "small": "two CPU cores, one to three hours of one core each, resumable",
    "lenet": "as small, on the paper's second MNIST network",
    "fashion": "as small with fewer updates, the same network on Fashion-MNIST",
    "cifar": "as small with fewer updates, the same network on CIFAR-10",
    "thorough": "as small, attacks of 1000 steps and 20 restarts on fewer images",
    "paper": "one GPU",
    "table": "published logs, image by image: a GPU, or some five hours of a CPU core",
}
TAGS: dict[str, str] = {
    "A": "read in a primary artefact: the paper's repository, its README, a review",
    "B": "read in somebody else's artefact: logs, leaderboards, other papers",
    "C": "recalled from the paper and not read again: not to be quoted as published",
    "D": "derived here and checked numerically",
}

Stage = Callable[[Bench], Record]
Table = tuple[list[str], list[list[str]]]
"""Header and rows of ready cells."""


@dataclass(frozen=True, slots=True)
class Near:
    """What is measured lies within `tolerance` of `value`: a cell of a table."""

    value: float
    tolerance: float

    def __str__(self) -> str:
        return f"{self.value:g} +- {self.tolerance:g}"

    def holds(self, measured: Measured) -> bool:
        """Whether it does; a value that is not a number never does."""
        return abs(measured.value - self.value) <= self.tolerance


@dataclass(frozen=True, slots=True)
class Above:
    """The whole interval of what is measured lies above `margin`: an order, such as a difference above 0."""

    margin: float = 0.0

    def __str__(self) -> str:
        return f"> {self.margin:g}"

    def holds(self, measured: Measured) -> bool:
        """Whether it does; an interval that is not a number never does."""
        return measured.low > self.margin


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a claim ends, and why."""

    state: State
    because: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a paper, or the theory, says of the records.

    Args:
        text: The claim, in words.
        source: Where it comes from.
        tag: How well it is known, see `TAGS`.
        expected: A cell with its tolerance, or an order with its margin.
        measure: The number that the records give.
        scales: Where it is meant; elsewhere it ends as not run.
        reasons: By scale, why it deviates there.

    Raises:
        InputError: an unknown tag or scale.
    """

    text: str
    source: str
    tag: Tag
    expected: Near | Above
    measure: Callable[[Records], Measured]
    scales: tuple[Scale, ...] = ("small", "lenet", "fashion", "cifar", "paper")
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tag not in get_args(Tag):
            raise InputError(f"need a tag among {', '.join(get_args(Tag))}; got {self.tag!r}")
        if not self.scales or not set(self.scales) <= set(SCALES):
            raise InputError(f"need scales among {', '.join(SCALES)}; got {self.scales!r}")

    @property
    def kind(self) -> str:
        """The word "cell" or the word "order"."""
        return "cell" if isinstance(self.expected, Near) else "order"

    @property
    def cited(self) -> str:
        """The source with its tag, and a warning where the number is none to quote."""
        warning = ", recalled, not published" if self.tag == "C" else ""
        return f"{self.source} [{self.tag}{warning}]"

    def judge(self, records: Records, scale: str) -> Verdict:
        """Decide from records of that scale."""
        if scale not in self.scales:
            return Verdict("not run", f"meant for {' and '.join(self.scales)}; these records are of {scale}")
        try:
            measured = self.measure(records)
        except NotRecorded as missing:
            return Verdict("not run", str(missing))
        if self.expected.holds(measured):
            return Verdict("reproduced", str(measured))
        return Verdict("deviates", "; ".join(filter(None, [self._missed(measured), self.reasons.get(scale, "")])))

    def _missed(self, measured: Measured) -> str:
        if not np.isfinite(measured.value):
            return f"there is no number: {measured}"
        missed = f"{measured}, where {self.expected} was expected"
        if isinstance(self.expected, Above) and measured.high >= self.expected.margin:
            missed += "; the interval does not exclude it"
        return missed


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """A paper, made again.

    Args:
        name: On the command line.
        paper: Authors, title, venue.
        scales: A configuration for each scale that it has, `smoke` among them. Each has a field `setting`.
        stages: In order; each gives one record, which later stages and claims do not change.
        tables: From records alone.
        claims: Likewise.
        deviations: From the paper, all of them.

    Raises:
        InputError: a scale is unknown, or there is no smoke.
    """

    name: str
    paper: str
    scales: Mapping[str, Any]
    stages: Mapping[str, Stage]
    tables: Mapping[str, Callable[[Records], Table]]
    claims: tuple[Claim, ...]
    deviations: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not {"smoke"} <= set(self.scales) <= set(SCALES):
            raise InputError(f"need smoke and no scales but {', '.join(SCALES)}; got {', '.join(self.scales)}")

    def configuration(self, scale: str) -> Any:
        """The configuration of a scale.

        Raises:
            InputError: there is no such scale.
        """
        if scale not in self.scales:
            raise InputError(f"need a scale among {', '.join(self.scales)}; got {scale!r}")
        return self.scales[scale]
