"""Free training on few labels: alone, and with a plain network's labels for the other images."""

import numpy as np
from matplotlib.figure import Figure

from figures.captions import BESIDE, about, intervals, setting, threat
from figures.marks import SHARES, apart, legend, line, log_axis, style, title
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import accuracy


def says(record: Record) -> str:
    """What there is to see, and what the training and the attacks were."""
    m, ladder = setting(record, "main"), setting(record, "ladder")
    under = f"Robust accuracy: the share that no attack of the ladder breaks in {threat(record)}. " if ladder else ""
    return (
        f"Robust and clean accuracy of Free training{f' with m = {m}' if m else ''} against the share of labelled "
        f"training images. {under}{f'Ladder: {ladder[1:-1]}. ' if ladder else ''}{BESIDE} {intervals('Bars')}"
    )


def draw(figure: Figure, records: Records) -> None:
    """Draw robust accuracy on the left, clean accuracy on the right, against the share of labelled images."""
    record = records["data_budget"]
    kinds: dict[str, list[tuple[float, str]]] = {}
    for name in record.notes["names"]:
        kind, share = name.split(", ")
        kinds.setdefault(kind, []).append((float(share), name))
    figure.set_size_inches(9.0, 4.4)
    panels = figure.subplots(1, 2, sharex=True)
    for k, (kind, cells) in enumerate(kinds.items()):
        shares, names = zip(*sorted(cells), strict=True)
        robust = [accuracy(np.isinf(record.of("distance", name))) for name in names]
        clean = [accuracy(record.of("correct", name)) for name in names]
        for panel, found in zip(panels, (robust, clean), strict=True):
            line(panel, shares, found, kind, style(k), beside=apart(k, len(kinds)))
    for panel, label in zip(panels, ("robust accuracy", "clean accuracy"), strict=True):
        log_axis(panel, "x", sorted({share for cells in kinds.values() for share, _ in cells}))
        panel.set(xlabel="share of the training images with labels", ylabel=label)
    panels[0].set_ylim(SHARES)
    title(figure, f"Free training by data budget: {about(record)}")
    legend(figure, panels[0])
