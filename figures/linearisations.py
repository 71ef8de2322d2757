"""Deep Defense: how many linearisations a training image takes to reach the boundary."""

import numpy as np
from matplotlib.figure import Figure

from figures.captions import about
from figures.marks import title
from paper_repro.recipes.records import Record, Records

_HATCHES = ("", "///")


def counted(record: Record) -> str:
    """The training images of every network and seed."""
    totals = record.arrays["counts"].sum((2, 3))
    least, most = int(totals.min()), int(totals.max())
    return f"{least if least == most else f'{least} to {most}'} training images"


def draw(figure: Figure, records: Records) -> None:
    """Draw a histogram for every network: right images and wrong ones side by side, each kind adding up to one."""
    record = records["iterations"]
    names, most = record.notes["names"], record.notes["max_iter"]
    figure.set_size_inches(9.0, 4.0)
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    labels = [*map(str, range(1, most + 1)), "not\nacross"]
    for panel, name in zip(panels, names, strict=True):
        counts = record.of("counts", name)  # (seeds, kinds, iterations)
        for k, kind in enumerate(("right", "wrong")):
            part = counts[:, k]
            total = part.sum(1, keepdims=True)
            shares = np.divide(part, total, out=np.zeros(part.shape), where=total > 0)
            places = np.arange(most + 1) + 0.4 * (k - 0.5)
            label = f"{kind}: {', '.join(str(t) for t in total[:, 0])} images by seed"
            panel.bar(places, shares.mean(0), 0.38, color=f"C{k}", hatch=_HATCHES[k], alpha=0.75, label=label)
            panel.vlines(places, shares.min(0), shares.max(0), color="black", lw=1)
        panel.set(xticks=range(most + 1), xticklabels=labels, xlabel="linearisations to the boundary")
        panel.set_title(name, fontsize=10)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("share of the images of the kind")
    title(figure, f"Training images by what their walk to the boundary takes: {about(record, counted(record))}")
