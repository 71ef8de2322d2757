"""What was met, image by image, against what is proved: oscillations of the gradient, and local Lipschitz constants."""

from matplotlib.figure import Figure

from figures.captions import about, columns
from figures.marks import MARKS, legend, title
from paper_repro.recipes.records import Records


def draw(figure: Figure, records: Records, stage: str, what: str, unit: str) -> None:
    """Draw a point for every image, seed and budget, and the line that no point can be below.

    Args:
        figure: Empty.
        records: Of a recipe.
        stage: Has `sampled` and `certified`, and names that end with a budget.
        what: Is bounded, in the plural.
        unit: Of it.
    """
    record = records[stage]
    figure.set_size_inches(6.4, 5.2)
    axes = figure.subplots()
    ends: list[float] = []  # of what was met: the bounds are far above, and the line would stretch the axis to them
    for k, name in enumerate(record.notes["names"]):
        met, proved = record.of("sampled", name).ravel(), record.of("certified", name).ravel()
        shown = met > 0
        network, _, eps = name.rpartition(", ")
        label = f"{network}, Linf eps = {eps}".removeprefix(", ")
        axes.plot(met[shown], proved[shown], MARKS[k], color=f"C{k}", ms=4, fillstyle="none", label=label)
        ends += met[shown].tolist()
    if ends:
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="0.3", lw=1, ls="--", label="proved = met")
    axes.set(xscale="log", yscale="log", xlabel=f"largest met ({unit})", ylabel=f"proved upper bound ({unit})")
    legend(figure, axes, 2)
    title(figure, f"{what}: {about(record, columns(record, 'sampled'))}")
