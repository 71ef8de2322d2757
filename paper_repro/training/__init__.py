"""One loop, and one file per training method."""

from paper_repro.training.erm import Erm
from paper_repro.training.fit import Diverged, Training, fit
from paper_repro.training.noise import NoiseAugmentation
from paper_repro.training.split import SplitAugmentation

__all__ = ["Diverged", "Erm", "NoiseAugmentation", "SplitAugmentation", "Training", "fit"]
