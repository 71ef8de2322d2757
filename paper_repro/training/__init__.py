"""One loop, and one file per training method."""

from paper_repro.training.erm import Erm
from paper_repro.training.fit import Diverged, Training, fit
from paper_repro.training.gaussian import GaussianAugmentation

__all__ = ["Diverged", "Erm", "GaussianAugmentation", "Training", "fit"]
