"""Which table of which recipe has which picture, under which file name, and what the index says of it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from matplotlib.figure import Figure

from figures import (
    accuracies,
    accuracy_by_budget,
    accuracy_by_distance,
    attack_effort,
    boundary_over_seeds,
    budget_and_replays,
    certified_by_bound,
    certified_radii,
    certifiers,
    challenge_ladder,
    costs,
    curvature_by_budget,
    data_budget,
    gradient_lines,
    gradients_over_training,
    line_over_seeds,
    linearisations,
    noise_over_seeds,
    proved_and_met,
    published_curves,
    published_radii,
    relative_distances,
    threshold,
    tuning,
)
from figures.captions import (
    BESIDE,
    HULL,
    PAIRED,
    RANGE,
    Caption,
    Counted,
    columns,
    configured,
    images,
    intervals,
    ranges,
)
from paper_repro.recipes.loss_landscape_stages import WARMED
from paper_repro.recipes.records import Record, Records


class Picture(NamedTuple):
    """A table's picture: the name of its files, how it is drawn, and the rest as in `Caption`."""

    name: str
    draw: Callable[[Figure, Records], None]
    stage: str
    says: str | Callable[[Record], str]
    counted: Counted = images

    def caption(self, records: Records) -> str:
        """What is shown, of how many images and which seeds, under which attacks."""
        return Caption(self.stage, self.says, self.counted).text(records)


def _cost_says(record: Record) -> str:
    return (
        "Passes of an update and time of an epoch, in multiples of the first method; medians over "
        f"n = {configured(record, 'cost_updates', 'updates') or 'some updates'} of each method, which take turns and "
        "start from the same weights, those of one seed. No interval: time is that of one machine."
    )


_NORMAL = f"{HULL} normal 95 % intervals over images"


def _cost(name: str, stage: str = "cost") -> Picture:
    return Picture(name, partial(costs.draw, stage=stage), stage, _cost_says)


def _accuracies(name: str, stage: str, base: str) -> Picture:
    says = f"Clean and robust accuracy, and the difference in robust accuracy from '{base}'. "
    says += f"{intervals('Bars')} {PAIRED}"
    return Picture(name, partial(accuracies.draw, stage=stage, base=base), stage, says)


def _certifiers(norm: str) -> Picture:
    says = partial(certifiers.says, norm=norm)
    return Picture(f"certified_{norm}", partial(certifiers.draw, norm=norm), "certificates", says)


def _published(name: str, stage: str) -> Picture:
    says = "Certified accuracy of g against the L2 radius in input units, by sigma. "
    says += intervals("Shades") if stage == "votes" else f"{BESIDE} {intervals('Bars')}"
    return Picture(name, partial(published_curves.draw, stage=stage), stage, says)


def _proved_and_met(name: str, stage: str, what: str, unit: str, says: str) -> Picture:
    draw = partial(proved_and_met.draw, stage=stage, what=what, unit=unit)
    whole = f"{says}, a point for every test image and seed. A proof has no interval."
    return Picture(name, draw, stage, whole, partial(columns, array="sampled", what="test images"))


FIGURES: dict[tuple[str, str], Picture] = {
    ("free_at", "Accuracy by budget and m"): Picture(
        "budget_and_replays",
        budget_and_replays.draw,
        "grid",
        budget_and_replays.says,
    ),
    ("free_at", "Cost, in multiples of plain training"): _cost("cost"),
    ("free_at", "Accuracy in noise"): Picture(
        "accuracy_in_noise",
        noise_over_seeds.draw,
        "noise",
        "Share of noisy copies of the test images that are right, against the standard deviation of Gaussian noise in "
        f"input units; an image counts with the mean over its copies. {intervals('Shades', 'normal')}",
    ),
    ("free_at", "Distance to the boundary, and what noise says of it"): Picture(
        "boundary_distance",
        boundary_over_seeds.draw,
        "boundary",
        "A point for every test image that is right and whose two distances were found, both axes in input units (L2), "
        "a mark for every seed's network. Right: slope of distance against prediction, 1 in a half-space; the dot is "
        f"the mean over seeds, the bar {HULL} bootstraps at 95 % over images. The points themselves have no interval.",
        partial(columns, array="sigma"),
    ),
    ("free_at", "Data budget"): Picture(
        "data_budget",
        data_budget.draw,
        "data_budget",
        data_budget.says,
    ),
    ("stability", "Certificates from the same votes"): Picture(
        "certified_by_bound",
        certified_by_bound.draw,
        "votes",
        f"Certified accuracy of g against the L2 radius in input units, by bound. {intervals('Shades')}",
    ),
    ("stability", "Accuracy under attack"): Picture(
        "accuracy_by_budget",
        accuracy_by_budget.draw,
        "attacks",
        accuracy_by_budget.says,
    ),
    ("stability", "Cost, in multiples of plain training"): _cost("cost"),
    ("deep_defense", "Distance of the nearest error over the norm of the image"): Picture(
        "relative_distances",
        relative_distances.draw,
        "distances",
        "Mean L2 distance over the norm of the image, by attack, over the images where it found an error. An attack "
        "that found one on some images alone is pale, with their share beside it: these are the nearer ones, so its "
        f"mean is too small to be compared with the others. {intervals('Bars', 'normal')} Right: quotient of means "
        f"over the plain network, and {HULL} paired bootstraps at 95 % over images.",
    ),
    ("deep_defense", "Accuracy by L2 budget, nearest of all attacks"): Picture(
        "accuracy_by_distance",
        accuracy_by_distance.draw,
        "distances",
        "Share of images whose nearest error over all attacks is beyond the L2 budget, in input units. "
        f"{BESIDE} {intervals('Bars')}",
    ),
    ("deep_defense", "Linearisations per training image"): Picture(
        "linearisations",
        linearisations.draw,
        "iterations",
        "Share of right and of wrong training images by the number of linearisations to the boundary; coloured "
        f"columns are means over seeds. Lines: {RANGE}.",
        linearisations.counted,
    ),
    ("deep_defense", "Convergence"): Picture(
        "tuning",
        tuning.draw,
        "convergence",
        "Cross-entropy and accuracy on all training and test images after every epoch of tuning, and the regulariser's "
        f"mean rho and share of images across the boundary during it. {ranges('Shades')}",
        tuning.counted,
    ),
    ("deep_defense", "Cost, from the plain network"): _cost("cost"),
    ("challenge", "Ladder of the challenge"): Picture(
        "ladder",
        challenge_ladder.draw,
        "ladder",
        "Share of images that each attack alone leaves right, and all of them together, beside what is published of a "
        f"network that is not ours, which has no interval. {intervals('Bars')}",
    ),
    ("loss_landscape", "Curvature by training budget"): Picture(
        "curvature_by_budget",
        curvature_by_budget.draw,
        "landscape",
        curvature_by_budget.says,
        partial(images, what="training images"),
    ),
    ("loss_landscape", "Gradient scattering along a line"): Picture(
        "gradient_lines",
        gradient_lines.draw,
        "landscape",
        "Slope of the loss along theta + t v, v the top eigenvector, for every eps (Linf, input units) of training "
        "and of the adversary. Where the adversary's answers change from one point to the next, the gradient can "
        "jump: the largest jump met is in the titles and in the last panel. Its place on the line is not recorded. "
        f"{ranges('Shades')} Bars of jumps: {RANGE}.",
        partial(images, what="training images"),
    ),
    ("loss_landscape", "Gradients over training"): Picture(
        "gradients_over_training",
        gradients_over_training.draw,
        "gradients",
        gradients_over_training.says,
        gradients_over_training.counted,
    ),
    ("loss_landscape", "Schedules of the budget"): _accuracies("schedules", "schedules", WARMED),
    ("loss_landscape", "Effort of the attack"): Picture(
        "attack_effort",
        attack_effort.draw,
        "effort",
        attack_effort.says,
    ),
    ("loss_landscape", "Oscillation of the parameter gradient"): _proved_and_met(
        "oscillation_bound",
        "oscillation",
        "Oscillation of the parameter gradient",
        "L2 norm of the change",
        "Change of an image's parameter gradient within eps (L2 norm): the largest met against the proved bound",
    ),
    ("loss_landscape", "Local Lipschitz constants of the logits"): _proved_and_met(
        "local_lipschitz",
        "lipschitz",
        "Local Lipschitz constants, Linf to Linf",
        "logits per input unit",
        "The largest slope of the logits met within eps (Linf, input units) against the proved bound",
    ),
    ("loss_landscape", "The linear threshold"): Picture(
        "threshold",
        threshold.draw,
        "linear",
        threshold.says,
        threshold.counted,
    ),
    ("loss_landscape", "Loss along a filter-normalised line through the weights"): Picture(
        "weight_line",
        line_over_seeds.draw,
        "weights",
        line_over_seeds.says,
        line_over_seeds.counted,
    ),
    ("smoothing_vs_ibp", "Linf"): _certifiers("Linf"),
    ("smoothing_vs_ibp", "L2"): _certifiers("L2"),
    ("training_methods", "Under attack, at equal numbers of passes"): _accuracies(
        "adversarial", "adversarial", "plain"
    ),
    ("training_methods", "Schedules of the budget, at equal numbers of updates"): _accuracies(
        "schedules", "schedules", WARMED
    ),
    ("training_methods", "Cost of the adversarial methods"): _cost("cost"),
    ("training_methods", "Average certified radius"): Picture(
        "certified_radii",
        certified_radii.draw,
        "radius",
        f"Average certified radius (L2, input units; {_NORMAL}), accuracy of g, and the "
        f"difference in radius from Gaussian augmentation. {intervals('Bars of the accuracy')} {PAIRED}",
    ),
    ("training_methods", "Cost of the methods for smoothing"): _cost("smoothed_cost", "smoothed_cost"),
    ("published_table", "Average certified radius"): Picture(
        "published_radii",
        published_radii.draw,
        "votes",
        f"Average certified radius (L2, input units; {_NORMAL}) beside the mean over the five "
        f"published seeds with one standard deviation of theirs, and what stability training adds. {PAIRED}",
    ),
    ("published_table", "Fixed number of votes"): _published("fixed_votes", "votes"),
    ("published_table", "As many votes as each image needs"): _published("adaptive_votes", "adaptive"),
}
"""By recipe and title of its table. Tables that are not here have no picture."""
