"""What a campaign costs: passes, seconds and dollars per thousand images, from what its rows took."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from certify.campaign.results import Results
from certify.errors import InputError

IMAGES = 1000
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a thousand images like those of a run. An estimate: it takes what comes to be like what was measured.

    Attributes:
        name: Of the run.
        measured: Images that it was measured on.
        passes: Noisy copies classified; 0 where the method draws none.
        busy: Seconds of one worker.
        wall: Seconds on the clock: all workers are busy until the last one is done.
        dollars: What the workers' hours cost.
    """

    name: str
    measured: int
    passes: float
    busy: float
    wall: float
    dollars: float


def cost_of(results: Results, *, price: float, workers: int = 1, times: float = 1.0) -> Cost:
    """The cost of a thousand images like those of a stored run.

    Args:
        results: Their seconds are those of the worker that had the example, its wait for more work left out.
        price: Dollars for one hour of one worker; >= 0.
        workers: At a time; >= 1. They do not change the dollars.
        times: Seconds of what is asked about over seconds of what was measured, for one image; > 0.

    Raises:
        InputError: a value is out of range.
    """
    if not (math.isfinite(price) and price >= 0) or workers < 1 or not (math.isfinite(times) and times > 0):
        raise InputError(f"need price >= 0, workers >= 1 and times > 0; got {price!r}, {workers!r}, {times!r}")
    busy = IMAGES * times * float(results.seconds.mean())
    return Cost(
        name=results.name,
        measured=len(results.example),
        passes=IMAGES * float(results.certificate.samples.double().mean()),
        busy=busy,
        wall=busy / workers,
        dollars=busy / HOUR * price,
    )


def render_costs(costs: Sequence[Cost]) -> str:
    """As a Markdown table."""
    header = [
        "per 1000 images",
        "measured on",
        "passes",
        "worker seconds",
        "seconds",
        "passes/s of a worker",
        "dollars",
    ]
    rows = [
        [
            c.name,
            c.measured,
            f"{c.passes:.0f}",
            f"{c.busy:.4g}",
            f"{c.wall:.4g}",
            f"{c.passes / c.busy:.0f}" if c.passes else "",
            f"{c.dollars:.4g}",
        ]
        for c in costs
    ]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True) + "\n"
