"""What the index says of the recipes' tables that have no picture."""

from functools import partial

from figures.captions import HULL, Caption, columns, configured

_SHARES = f"Cells: mean and deviation over seeds, and {HULL} exact 95 % intervals over images."
_VERDICTS = "What every check says of every seed's network. No interval: a verdict is a word."
CAPTIONS: dict[tuple[str, str], Caption] = {
    ("free_at", "Input surfaces"): Caption(
        "surfaces",
        "Numbers of the mean loss around test images. Cells: mean and deviation over seeds; no interval over images.",
        partial(configured, field="surface_images", what="test images"),
    ),
    ("stability", "Attacks that reuse their noise"): Caption(
        "reused_noise",
        f"Accuracy of g under the same attack with the same draws at every step, and with fresh ones. {_SHARES}",
        partial(columns, array="L2"),
    ),
    ("masking_of_g", "Signs of gradient masking"): Caption("masking", _VERDICTS),
    ("deep_defense", "A fixed L2 budget"): Caption(
        "ladder",
        f"Clean accuracy, and the share of images that no attack breaks. {_SHARES}",
        partial(columns, array="correct"),
    ),
    ("deep_defense", "The paper's measure, one Linf step"): Caption(
        "fgs",
        "Share of images that one Linf step leaves right, its size in parts of eps_ref, the step that halves the "
        f"accuracy of Deep Defense. {_SHARES}",
        partial(columns, array="survives"),
    ),
    ("loss_landscape", "Other norms"): Caption(
        "norms",
        f"Robust accuracy in norms that training did not see, in input units. {_SHARES}",
        partial(columns, array="L2"),
    ),
    ("loss_landscape", "Step sizes and steps of PGD"): Caption(
        "effort",
        "Share of images that PGD leaves, the mean of the largest loss that it reached, by what share of itself that "
        "rose over the last tenth of the steps, and in how many seeds the cell is the strongest of all. One restart "
        "from the same start in every cell. Cells: mean and deviation over seeds; no interval over images.",
    ),
    ("loss_landscape", "Signs of gradient masking"): Caption(
        "masking", _VERDICTS, partial(configured, field="checked", what="test images")
    ),
}
"""Of the tables without a picture, by recipe and title."""
