"""The oscillation of the parameter gradient: what was met, image by image, against what is proved."""

from matplotlib.figure import Figure

from figures.captions import about, columns
from figures.marks import MARKS, title
from paper_repro.recipes.records import Records


def draw(figure: Figure, records: Records) -> None:
    """Draw a point for every image, seed and budget, and the line that no point can be below."""
    record = records["oscillation"]
    figure.set_size_inches(6.4, 4.8)
    axes = figure.subplots()
    ends: list[float] = []  # of what was met: the bounds are far above, and the line would stretch the axis to them
    for k, name in enumerate(record.notes["names"]):
        met, proved = record.of("sampled", name).ravel(), record.of("certified", name).ravel()
        shown = met > 0
        axes.plot(
            met[shown], proved[shown], MARKS[k], color=f"C{k}", ms=4, fillstyle="none", label=f"Linf eps = {name}"
        )
        ends += met[shown].tolist()
    if ends:
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="0.3", lw=1, ls="--", label="proved = met")
    axes.set(xscale="log", yscale="log", xlabel="largest oscillation met (L2)", ylabel="proved upper bound (L2)")
    axes.legend(fontsize=8)
    title(figure, f"Oscillation of the parameter gradient: {about(record, columns(record, 'sampled'))}")
