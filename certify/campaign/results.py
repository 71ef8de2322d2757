"""What a store gives back: the rows of one run, or of one published log, as arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from certify.accuracy import FloatArray, scores
from certify.certificate import Certificate

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """Somebody's per-example results, as printed. Not a Certificate: nothing here was proved by this library.

    Attributes:
        name: The file's name.
        example: (m,) ids, as printed.
        label: (m,) int64.
        prediction: (m,) int64; -1 abstains.
        radius: (m,) float64, as printed: usually rounded to nearest at 3 digits, so up to half a digit too large.
        correct: (m,) bool, as printed.
        seconds: (m,) float64.
    """

    name: str
    example: IntArray
    label: IntArray
    prediction: IntArray
    radius: FloatArray
    correct: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    seconds: FloatArray

    @classmethod
    def of(cls, name: str, rows: Sequence[tuple[int, int, int, float, bool, float]]) -> Self:
        """From rows of example, label, prediction, radius, correct, seconds."""
        example, label, prediction, radius, correct, seconds = zip(*rows, strict=True)
        return cls(
            name=name,
            example=np.array(example, np.int64),
            label=np.array(label, np.int64),
            prediction=np.array(prediction, np.int64),
            radius=np.array(radius, np.float64),
            correct=np.array(correct, np.bool_),
            seconds=np.array(seconds, np.float64),
        )

    def scores(self) -> FloatArray:
        """Printed radius where correct, -inf elsewhere."""
        return np.where(self.correct, self.radius, -np.inf)


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """The stored rows of one run, in order of example.

    Attributes:
        settings: What determined the numbers; for versions other than torch's see `Store.sessions`.
        certificate: Rebuilt from the rows.
        example: (m,) ids in the data set.
        label: (m,) int64.
        seconds: (m,) wall clock per example.
    """

    settings: Mapping[str, Any]
    certificate: Certificate
    example: IntArray
    label: IntArray
    seconds: FloatArray

    @property
    def name(self) -> str:
        """What a table calls this run."""
        return f"{self.settings['model'].rpartition(':')[2]} {self.certificate.subject}"

    def scores(self) -> FloatArray:
        """Certified radius where correct, -inf elsewhere."""
        return scores(self.certificate, torch.from_numpy(self.label))
