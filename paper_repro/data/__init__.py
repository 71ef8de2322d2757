"""Data sets, each known by the SHA-256 of its decoded arrays, wherever they come from."""

from paper_repro.data.dataset import Data
from paper_repro.data.digits import digits
from paper_repro.data.mnist import fashion_mnist, mnist

__all__ = ["Data", "digits", "fashion_mnist", "mnist"]
