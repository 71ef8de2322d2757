"""Lower bound, upper bound: what is known of each example's robust radius."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from certify.accuracy import FloatArray
from certify.certificate import Certificate, Deterministic
from certify.errors import Contradiction, InputError


@dataclass(frozen=True, slots=True, eq=False)
class Bracket:
    """lower <= r* <= upper, example by example, for one subject and norm.

    Attributes:
        lower: (n,) float64, certified; 0.0 where nothing is.
        upper: (n,) float64, found; +inf where no attack succeeded.
        norm: The norm of both.
        subject: The classifier that both are about.
        crossed: (n,) bool, where a certificate that may fail exceeds what an attack found; alpha of them may.
    """

    lower: FloatArray
    upper: FloatArray
    norm: str
    subject: str
    crossed: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


def bracket(certificate: Certificate, y: Tensor, upper: Tensor) -> Bracket:
    """Join certified lower bounds with the distances at which attacks on the same subject succeeded.

    The robust radius is about the label: an example whose certified prediction is wrong has radius 0.

    Args:
        certificate: For n examples.
        y: (n,) labels.
        upper: (n,) distances of misclassified inputs in the certificate's norm, +inf where none was found. These inputs
            must lie in the certificate's region, its box or on its lattice: of others it says nothing.

    Raises:
        InputError: shapes differ, or a distance is negative or NaN.
        Contradiction: a deterministic certificate reaches to or beyond a counterexample; the message names the first.
    """
    n = len(certificate)
    if y.shape != (n,) or upper.shape != (n,) or not bool((upper >= 0).all()):
        raise InputError(f"need y ({n},) and distances ({n},) >= 0; got {tuple(y.shape)} and {tuple(upper.shape)}")
    right = certificate.prediction == y
    lower = torch.where(right, certificate.radius, 0.0).numpy()
    found = upper.double().numpy()
    # A counterexample at distance d refutes every closed ball of radius d or more around a right prediction.
    crossed = right.numpy() & (lower >= found)
    if isinstance(certificate.guarantee, Deterministic) and crossed.any():
        first = int(crossed.argmax())
        raise Contradiction(
            f"{certificate.subject}: example {first} is certified to {lower[first]:.17g} in {certificate.norm}, "
            f"and misclassified at {found[first]:.17g}; {int(crossed.sum())} such in all. "
            f"A counterexample must lie in the certificate's region, the {certificate.region}"
        )
    return Bracket(lower, found, certificate.norm, certificate.subject, crossed)
