"""The loss along a random line through the weights, over all seeds: clean, and under attack."""

from matplotlib.figure import Figure

from figures.captions import about, configured, ranges, setting
from figures.marks import legend, line, log_axis, style, title
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import over_seeds


def counted(record: Record) -> str | None:
    """The training images that the loss is a mean over."""
    return configured(record, "images", "training images")


def says(record: Record) -> str:
    """What there is to see, and how far the attacks may go."""
    attack, eps = setting(record, "attack"), setting(record, "target")
    under = f" Attacks: {attack}, Linf eps = {float(eps):g}." if attack and eps else ""
    return (
        "Mean cross-entropy of training images along one random line for every seed: clean, with the attacks of the "
        f"centre, and attacked anew at every point.{under} {ranges('Shades')}"
    )


def draw(figure: Figure, records: Records) -> None:
    """Draw a panel for every network, a line for every kind of attack."""
    record = records["weights"]
    names, axis = record.notes["names"], record.notes["axis"]
    networks = list(dict.fromkeys(name.rpartition(", ")[0] for name in names))
    figure.set_size_inches(1.0 + 3.3 * len(networks), 4.4)
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for panel, network in zip(panels, networks, strict=True):
        kinds = [name.rpartition(", ")[2] for name in names if name.rpartition(", ")[0] == network]
        for k, kind in enumerate(kinds):
            found = [over_seeds(column) for column in record.of("loss", f"{network}, {kind}").T]
            line(panel, axis, found, kind, style(k), shaded=True)
        panel.axvline(0.0, color="0.4", lw=0.8)
        panel.set_xlabel("distance, in units of the filters' norms")
        panel.set_title(network, fontsize=10)
    log_axis(panels[0], "y")
    panels[0].set_ylabel("mean cross-entropy")
    title(figure, f"Loss along a filter-normalised line: {about(record, counted(record))}")
    legend(figure, max(panels, key=lambda panel: len(panel.lines)))
