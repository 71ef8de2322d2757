"""The landscape of adversarial training: curvature against the budget, with the adversary held and answering."""

from matplotlib.figure import Figure

from figures.captions import about, images, ranges
from figures.marks import legend, line, style, title
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import over_seeds


def says(record: Record) -> str:
    """What there is to see: the difference of gradients over a distance, which is no derivative."""
    return (
        f"Difference quotient of the loss's gradient over the distance h = {record.notes['h']:g} either way along unit "
        "vectors of parameter space, against eps of training and adversary (Linf, input units): with the "
        f"perturbations held fixed, and with an attack at either end. {ranges('Shades')}"
    )


def draw(figure: Figure, records: Records) -> None:
    """Draw the curvature along the top eigenvector on the left, along a random direction on the right."""
    record = records["landscape"]
    names = record.notes["names"]
    eps = [float(name) for name in names]
    figure.set_size_inches(9.5, 4.4)
    panels = figure.subplots(1, 2)
    kinds = (("held", "perturbations held fixed"), ("reattacked", "attacked anew at both ends"))
    for direction, panel in enumerate(panels):
        for k, (key, label) in enumerate(kinds):
            found = [over_seeds(record.of(key, name)[:, direction]) for name in names]
            line(panel, eps, found, label, style(k), shaded=True)
        panel.axhline(0.0, color="0.4", lw=0.8)
        panel.set(xlabel="eps of training and of the adversary", xticks=eps)
    panels[0].set(ylabel="curvature of the loss")
    panels[0].set_title("along the top eigenvector", fontsize=10)
    panels[1].set_title("along a random direction", fontsize=10)
    whole = about(record, images(record, "training images"))
    title(figure, f"Curvature over a distance h = {record.notes['h']:g} in parameter space: {whole}")
    legend(figure, panels[0])
