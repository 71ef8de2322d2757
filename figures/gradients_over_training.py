"""The landscape of adversarial training: loss and size of the gradients, epoch by epoch, for every budget."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.captions import about, configured
from figures.marks import legend, log_axis, style, title
from paper_repro.recipes.records import Record, Records


def counted(record: Record) -> str | None:
    """The training images."""
    return configured(record, "train", "training images")


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
