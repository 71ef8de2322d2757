"""Accuracy in Gaussian noise over all seeds: masked gradients do not help in noise, robustness does."""

from matplotlib.figure import Figure

from figures.captions import about
from figures.marks import legend, line, style, title
from paper_repro.recipes.records import Records
from paper_repro.recipes.statistics import image_mean


def draw(figure: Figure, records: Records) -> None:
    """Draw a line for every network. An image counts with the share of its noisy copies that are right."""
    record = records["noise"]
    axes = figure.subplots()
    for k, name in enumerate(record.notes["names"]):
        right = record.of("right", name)  # (seeds, levels, images)
        found = [image_mean(right[:, level]) for level in range(right.shape[1])]
        line(axes, record.notes["sigmas"], found, name, style(k), shaded=True)
    axes.set(xlabel="standard deviation of the noise (input units)", ylabel="accuracy")
    title(figure, f"Accuracy in Gaussian noise: {about(record)}")
    legend(figure, axes)
