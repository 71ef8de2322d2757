"""Deep Defense: the course of tuning with and without the regulariser."""

from matplotlib.figure import Figure

from figures.captions import about, configured
from figures.marks import legend, line, style, title
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import over_seeds


def counted(record: Record) -> str | None:
    """The images of both splits."""
    train, test = configured(record, "train", "training"), configured(record, "test", "test images")
    return None if train is None or test is None else f"{train} and {test}"


def draw(figure: Figure, records: Records) -> None:
    """Draw cross-entropy and accuracy after every epoch, and what the regulariser saw during it."""
    record = records["convergence"]
    figure.set_size_inches(11.5, 4.4)
    panels = figure.subplots(1, 3)
    epochs = list(range(1, record.arrays["loss"].shape[2] + 1))
    for panel, what in zip(panels, ("cross-entropy", "accuracy"), strict=False):
        for k, (name, split) in enumerate((n, s) for n in record.notes["names"] for s in ("train", "test")):
            values = record.of(f"{split} {what}", name)
            line(panel, epochs, [over_seeds(column) for column in values.T], f"{name}: {split}", style(k), shaded=True)
        panel.set(ylabel=what)
    for k, label in enumerate(("mean rho of the images", "share of images across the boundary")):
        values = record.arrays["watched"][:, :, k]
        line(panels[2], epochs, [over_seeds(column) for column in values.T], label, style(4 + k), shaded=True)
    panels[2].set(ylabel="rho, or share of training images", ylim=(0, None))
    panels[2].legend(fontsize=8)
    for panel in panels:
        panel.set(xlabel="epoch of tuning", xticks=epochs if len(epochs) <= 10 else epochs[:: len(epochs) // 5])
    title(figure, f"Tuning with and without Deep Defense: {about(record, counted(record))}")
    legend(figure, panels[0], 4)
