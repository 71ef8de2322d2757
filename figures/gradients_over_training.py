"""The landscape of adversarial training: loss and size of the gradients, epoch by epoch, for every budget."""

import re

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.captions import about, configured, ranges, setting
from figures.marks import legend, log_axis, style, title
from paper_repro.recipes.records import Record, Records


def counted(record: Record) -> str | None:
    """The training images."""
    return configured(record, "train", "training images")


def says(record: Record) -> str:
    """What there is to see, and that eps is not there from the first epoch on."""
    ramp = re.search(r"shape='(\w+)', low=([^,]+),.*\bepochs=(\d+)", setting(record, "warm_up") or "")
    grows = (
        f"eps grows to its value in a {ramp[1]} warm-up from {float(ramp[2]):g} over the first {ramp[3]} epochs. "
        if ramp
        else ""
    )
    return (
        "Mean adversarial loss and mean norm of minibatch gradients by epoch, for every eps (Linf, input units). "
        f"{grows}{ranges('Shades')}"
    )


def draw(figure: Figure, records: Records) -> None:
    """Draw the training loss on the left, the norm of minibatch gradients on the right."""
    record = records["gradients"]
    figure.set_size_inches(9.5, 4.4)
    panels = figure.subplots(1, 2, sharex=True)
    for panel, key, label in zip(
        panels, ("loss", "gradient_norm"), ("mean loss of the epoch", "mean norm of minibatch gradients"), strict=True
    ):
        for k, name in enumerate(record.notes["names"]):
            values = record.of(key, name)  # (seeds, epochs)
            epochs = range(1, values.shape[1] + 1)
            every = max(1, len(epochs) // 8)
            panel.plot(
                epochs,
                values.mean(0),
                label=f"eps = {name}",
                lw=1.4,
                ms=4,
                fillstyle="none",
                markevery=every,
                **style(k),
            )
            panel.fill_between(epochs, values.min(0), values.max(0), color=f"C{k}", alpha=0.15, lw=0)
        panel.set(xlabel="epoch", ylabel=label)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        log_axis(panel, "y")
    title(figure, f"Training by budget: {about(record, counted(record))}")
    legend(figure, panels[0], 5)
