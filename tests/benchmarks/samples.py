"""How many votes AdaptiveSmoothing takes, on success probabilities implied by published logs, with Bernoulli votes.

The fixed table is what 100,000 votes at alpha = .001 certify at the same probabilities; the floor is the mean of
log(1/alpha) / KL(p, threshold) at the largest radius that table certifies: no test of power one takes fewer on average.
"""

from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import beta

from certify import Gaussian
from certify.adaptive import AdaptiveSmoothing, Grid, draw_until_decided
from certify.campaign.logs import read_log

LOGS = Path(__file__).resolve().parents[3] / "shared" / "certification-logs" / "cohen2019"
ALPHA, FIXED, RUNS, N0 = 0.001, 100_000, 10, 100
LOG_ALPHA = 0.01  # the alpha with which the logs were made; their radii identify it
ABSTAINING = 0.45


def implied_probabilities(path: Path, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """The share of votes behind each printed radius, and whether the row is correct."""
    log = read_log(path)
    k = np.arange(FIXED // 2, FIXED + 1)
    lattice = sigma * ndtri(beta.ppf(LOG_ALPHA, k, FIXED - k + 1))
    nearest = np.abs(np.searchsorted((lattice[1:] + lattice[:-1]) / 2, log.radius))
    return np.where(log.prediction < 0, ABSTAINING, k[nearest] / FIXED), log.correct


def divergence(p: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """KL between Bernoulli laws."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return p * np.log(p / tau) + np.where(p < 1, (1 - p) * np.log((1 - p) / (1 - tau)), 0.0)


def main() -> None:
    if not LOGS.is_dir():
        print("needs ../shared/certification-logs, which is not part of the repository")
        return
    means, floors = [], []
    for scale in ("0.25", "0.50", "1.00"):
        sigma = float(scale)
        p, correct = implied_probabilities(LOGS / f"cifar10_resnet110_noise_{scale}__sigma_{scale}.tsv", sigma)
        radii = np.arange(0, sigma * ndtri(ALPHA ** (1 / FIXED)), 0.25)
        tau = ndtr(radii / sigma)
        k = np.round(p * FIXED)
        fixed = (tau[None] <= np.nan_to_num(beta.ppf(ALPHA, k, FIXED - k + 1))[:, None]).sum(1)
        floor = np.zeros(len(p))
        floor[fixed > 0] = -np.log(ALPHA) / divergence(p[fixed > 0], tau[fixed[fixed > 0] - 1])
        fixed_table = (correct[:, None] & (fixed[:, None] > np.arange(len(tau)))).mean(0)
        method = AdaptiveSmoothing(Gaussian(sigma), tuple(radii), n0=N0, n_max=FIXED, alpha=ALPHA)
        votes, tables = [], []
        for run in range(RUNS):
            generator, hits = np.random.default_rng(run), np.zeros(len(p), np.int64)

            def vote(live, _, step, hits=hits, generator=generator, p=p):  # type: ignore[no-untyped-def]
                hits[live] += generator.binomial(step, p[live])
                return hits[live]

            state = Grid(method, len(p))
            votes.append(N0 + draw_until_decided(state, len(p), FIXED, vote).mean())
            tables.append((correct[:, None] & (state.opened[:, None] > np.arange(len(tau)))).mean(0))
        difference = np.mean(tables, 0) - fixed_table
        means.append(np.mean(votes))
        floors.append(floor.mean())
        print(
            f"sigma {scale}: {means[-1]:6.0f} votes per image (sd over runs {np.std(votes, ddof=1):.0f}), "
            f"1/{(FIXED + N0) / means[-1]:.1f} of {FIXED + N0:,}; floor {floors[-1]:.0f}, "
            f"ratio {means[-1] / floors[-1]:.2f}; table cells {difference.min():+.4f} to {difference.max():+.4f}, "
            f"single runs {(np.array(tables) - fixed_table).min():+.4f}"
        )
    print(f"mean of the three: {np.mean(means):.0f}, 1/{(FIXED + N0) / np.mean(means):.1f}")
