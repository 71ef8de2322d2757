"""Networks whose first layer normalises, and the checkpoints they are kept in."""

from paper_repro.models.checkpoint import import_pickle, save_checkpoint
from paper_repro.models.small import lenet, linear, mlp, wong_kolter

__all__ = ["import_pickle", "lenet", "linear", "mlp", "save_checkpoint", "wong_kolter"]
