"""The linear theory: the best linear classifier's weights on both sides of the threshold of the budget."""

from matplotlib.figure import Figure

from figures.captions import BESIDE, about, ranges
from figures.marks import apart, legend, line, style, title
from paper_repro.recipes.records import Record, Records
from paper_repro.recipes.statistics import over_seeds


def counted(record: Record) -> str:
    """The examples that are drawn for a classifier, of both classes."""
    totals = {sum(map(int, name.split(", ")[0].split("-"))) for name in record.notes["names"]}
    return f"{' or '.join(map(str, sorted(totals)))} drawn examples"


def says(record: Record) -> str:
    """What there is to see, and what is left where the weights should be 0."""
    solved = f", a loss within {record.notes['tolerance']:g} of the least," if "tolerance" in record.notes else ""
    return (
        "Norm of the best linear classifier's weights against eps in units of the predicted threshold. Above it the "
        f"best weights are 0: what stays there is the solver's tolerance{solved} and no size of weights. "
        f"{BESIDE} {ranges('Bars')}"
    )


def draw(figure: Figure, records: Records) -> None:
    """Draw the norm of the weights against the budget in units of the threshold."""
    record = records["linear"]
    ratios = record.notes["ratios"]
    axes = figure.subplots()
    names = record.notes["names"]
    for k, name in enumerate(names):
        counts, norm = name.split(", ")
        sizes = [over_seeds(column) for column in record.of("size", name).T]
        line(
            axes, ratios, sizes, f"{norm}, {counts.replace('-', ' + ')} examples", style(k), beside=apart(k, len(names))
        )
    axes.axvline(1.0, color="0.4", lw=1, ls="--")
    axes.set(xlabel="eps / threshold", ylabel="norm of the best classifier's weights", yscale="log")
    thresholds = ", ".join(f"{v:.4f} in {norm}" for norm, v in record.notes["thresholds"].items())
    whole = about(record, counted(record))
    title(figure, f"Dashed: the budget from which on only a constant is best\n{whole}; in the data: {thresholds}")
    legend(figure, axes, 2)
