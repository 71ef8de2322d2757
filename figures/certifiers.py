"""Smoothing, interval bounds and linear bounds on the same images, in one norm, beside what attacks leave."""

import numpy as np
from matplotlib.figure import Figure

from figures.captions import about, intervals, setting
from figures.marks import SHARES, curve, radii_to, style, title
from paper_repro.recipes.records import Record, Records


def says(record: Record, norm: str = "Linf") -> str:
    """What there is to see, with which certifiers and attacks; and why a smoothed network has no attack."""
    smoothing, attacks = setting(record, "smoothing"), setting(record, "attacks")
    return (
        f"Certified accuracy against the {norm} radius in input units, by network; black: what attacks on f leave. A "
        "network certified by smoothing has no black curve, as its certificate is about g and the attacks are on f. "
        f"{f'g: {smoothing}. ' if smoothing else ''}{f'Attacks: {attacks[1:-1]}. ' if attacks else ''}"
        f"{intervals('Shades')}"
    )


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
            look = {"color": "black", "marker": "", "ls": style(1)["ls"]}
            curve(panel, left, grid, "left by attacks on f", look, [])
        panel.set(xlabel=f"{norm} radius (input units)", xlim=(0, stop), ylim=SHARES)
        panel.set_title(f"network: {network}", fontsize=10)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("share of images")
    title(figure, f"Certified accuracy in {norm}: {about(record)}")
