"""Smoothing, interval bounds and linear bounds on the same images, in one norm, beside what attacks leave."""

import numpy as np
from matplotlib.figure import Figure

from figures.captions import about
from figures.marks import SHARES, curve, radii_to, style, title
from paper_repro.recipes.records import Records


def draw(figure: Figure, records: Records, norm: str = "Linf") -> None:
    """Draw the certified accuracy of every method, and in black the accuracy that attacks leave the same network."""
    record = records["certificates"]
    names, radii = record.notes["names"], record.notes["radii"][norm]
    networks = list(dict.fromkeys(name.partition(":")[0] for name in names))
    stop = 1.1 * max(radii)
    figure.set_size_inches(3.7 * len(networks), 4.4)
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    grid = radii_to(stop)
    found = records["attacks"] if records.has("attacks") else None
    for panel, network in zip(panels, networks, strict=True):
        for k, name in enumerate(names):
            if name.partition(":")[0] == network:
                native = record.notes["native"][name]
                label = name.partition(": ")[2] + ("" if native == norm else f", from {native}")
                curve(panel, record.of(norm, name), grid, label, style(k), radii)
        if found is not None and network in found.notes["names"]:
            left = np.nextafter(found.of(norm, network), -np.inf)
            look = {"color": "black", "ls": style(1)["ls"]}
            panel.plot(grid, [(left >= r).mean() for r in grid], lw=1, label="left by attacks on f", **look)
        panel.set(xlabel=f"{norm} radius (input units)", xlim=(0, stop), ylim=SHARES)
        panel.set_title(f"network: {network}", fontsize=10)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("share of images")
    title(figure, f"Certified accuracy in {norm}: {about(record)}")
