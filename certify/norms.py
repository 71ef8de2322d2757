"""The same certificate in another norm: an explicit step, by inclusion of balls, which the certificate records."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from certify.binomial import GUARD
from certify.certificate import Certificate
from certify.errors import InputError
from certify.threat import Norm

# ||d||_from <= factor(dimension) * ||d||_to, hence a radius divided by the factor.
_EXPONENT: dict[str, float] = {"L1": 1.0, "L2": 0.5, "Linf": 0.0}


@dataclass(frozen=True, slots=True)
class Converted:
    """The method of a converted certificate: what proved it, and the step taken since."""

    method: Any
    step: str


def convert(certificate: Certificate, norm: Norm, dimension: int) -> Certificate:
    """Restate a certificate in another norm.

    Proves: What the certificate proves, for the largest ball of the other norm inside its ball. From L2 or L1 to L0 it
    counts changed coordinates of inputs in [0, 1], where one coordinate moves by at most 1.

    Args:
        certificate: In L1, L2 or Linf.
        norm: "L1", "L2", "Linf" or, from L1 or L2, "L0".
        dimension: Number of coordinates of one input.

    Returns: A certificate whose method records the step; the same one where the norm is the same.

    Raises:
        InputError: there is no such conversion, or the dimension is not positive.
    """
    if dimension < 1:
        raise InputError(f"need dimension >= 1; got {dimension}")
    source = certificate.norm
    if source == norm:
        return certificate
    if norm == "L0" and source in ("L1", "L2"):
        power = 1 if source == "L1" else 2
        radius = torch.floor(certificate.radius**power * (1 - GUARD))
        region = "box" if certificate.region == "ball" else certificate.region
        step = f"{source} to L0 for inputs in [0, 1]: floor(r^{power}) coordinates"
        return replace(certificate, radius=radius, norm=norm, region=region, method=Converted(certificate.method, step))
    if source not in _EXPONENT or norm not in _EXPONENT:
        raise InputError(f"no conversion from {source} to {norm}")
    # ||d||_1 <= sqrt(d) ||d||_2 <= d ||d||_inf; towards a larger norm's ball the radius stays.
    factor = dimension ** max(0.0, _EXPONENT[source] - _EXPONENT[norm])
    radius = certificate.radius if factor == 1 else certificate.radius / factor * (1 - GUARD)
    step = f"{source} to {norm} by ||d||_{source} <= {factor:g} ||d||_{norm}"
    return replace(certificate, radius=radius, norm=norm, method=Converted(certificate.method, step))
