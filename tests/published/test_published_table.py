"""The published numbers that the recipe `published_table` is judged by, worked out again from the logs."""

from pathlib import Path

import numpy as np
import pytest

from certify.campaign.logs import read_log
from paper_repro.recipes.published_table import PUBLISHED, PUBLISHED_CERTIFIED, PUBLISHED_RADII, PUBLISHED_SD

FILES = {"gaussian": "gaussian", "stability": "stab"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_mean_over_the_published_seeds_on_every_twentieth_image(shared: Path, name: str) -> None:
    training, sigma = name.split()
    logs = sorted((shared / "certification-logs" / "jeong2020").glob(f"mnist_lenet_{FILES[training]}_noise_*"))
    chosen = [log for log in logs if float(log.stem.split("_")[4]) == float(sigma)]
    assert len(chosen) == 5
    scores = []
    for log in map(read_log, chosen):
        rows = np.array(log.example) % 20 == 0
        assert rows.sum() == 500
        scores.append(log.scores()[rows])
    found = np.array(scores)
    means = np.maximum(found, 0.0).mean(1)
    assert PUBLISHED[name] == pytest.approx(means.mean(), abs=5e-5)
    assert PUBLISHED_SD[name] == pytest.approx(means.std(ddof=1), abs=5e-5)
    certified = [(found >= radius).mean() for radius in PUBLISHED_RADII]
    assert PUBLISHED_CERTIFIED[name] == pytest.approx(certified, abs=5e-5)
