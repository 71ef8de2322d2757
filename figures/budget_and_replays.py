"""Free training: accuracy against the budget of updates, a line for every m, beside plain and PGD training."""

import re

import numpy as np
from matplotlib.figure import Figure

from figures.captions import BESIDE, about, intervals
from figures.marks import SHARES, apart, bars, legend, line, log_axis, style, title
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import Measured, accuracy


def says(record: Record) -> str:
    """What there is to see; an update of PGD is not to be had at the price of the others."""
    found = re.search(r"\bpgd=PGDTraining\(.*?\bsteps=(\d+)", record.notes.get("configuration", ""))
    steps, cost = (found[1], str(int(found[1]) + 1)) if found else ("K", "K + 1")
    return (
        "Robust and clean accuracy against epochs of updates, replays counted, a line for every m. An update of plain "
        f"or Free training costs one forward and backward pass, an update of PGD-{steps} costs {cost}. {BESIDE} "
        f"{intervals('Bars')}"
    )


def draw(figure: Figure, records: Records) -> None:
    """Draw robust accuracy on the left, clean accuracy on the right."""
    record = records["grid"]
    notes = record.notes
    figure.set_size_inches(9.5, 4.8)
    panels = figure.subplots(1, 2, sharex=True)
    others = [name for name in notes["names"] if not name.startswith("free")]
    count = len(notes["replays"]) + len(others)
    for panel, clean in zip(panels, (False, True), strict=True):
        for k, m in enumerate(notes["replays"]):
            epochs = [e for e in notes["epochs"] if m <= e]
            found = [_accuracy(record, f"free m={m}, {e} epochs", clean) for e in epochs]
            line(panel, epochs, found, f"Free, m = {m}", style(k), beside=apart(k, count))
        for k, name in enumerate(others):
            v, epochs = _accuracy(record, name, clean), _epochs(name)
            look = {"marker": "*" if name.startswith("plain") else style(4 + k)["marker"], "color": "black"}
            panel.plot([epochs], [v.value], ls="", ms=7, label=name, clip_on=False, **look)
            bars(panel, [epochs], [v], look, apart(len(notes["replays"]) + k, count))
        ticks = sorted({*notes["epochs"], *map(_epochs, others)})
        log_axis(panel, "x", ticks)
        panel.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.5)
        panel.set(xlabel="epochs of updates, replays counted", ylabel="clean accuracy" if clean else "robust accuracy")
    panels[0].set_ylim(SHARES)
    title(figure, f"Accuracy by budget and m: {about(record)}")
    legend(figure, panels[0], 4)


def _epochs(name: str) -> int:
    return int(name.split(", ")[1].split()[0])


def _accuracy(record: Record, name: str, clean: bool) -> Measured:
    return accuracy(record.of("correct", name) if clean else np.isinf(record.of("distance", name)))
