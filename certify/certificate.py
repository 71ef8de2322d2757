"""A proved lower bound on the robust radius, and what it was proved about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from certify.binomial import check_alpha
from certify.errors import InputError
from certify.threat import Norm, Region

ABSTAIN = -1
"""The prediction of a certifier that could not decide. It counts as an error and carries radius 0."""


@dataclass(frozen=True, slots=True)
class Deterministic:
    """The statement holds with certainty."""


@dataclass(frozen=True, slots=True)
class PerExample:
    """For each example separately, P(the statement is false) <= alpha over the certifier's own draws.

    Not joint: among m certified examples, up to about alpha * m may be wrong. `certified_accuracy` accounts for it.
    """

    alpha: float

    def __post_init__(self) -> None:
        check_alpha(self.alpha)


Guarantee = Deterministic | PerExample


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """Lower bounds on the robust radius of `subject` at n examples.

    Proves: For every example i with prediction[i] != ABSTAIN, `subject` predicts prediction[i] everywhere in the
    closed ball of radius[i] in `norm` around the example, in the units of the input, as far as `region` goes; with the
    probability that `guarantee` states, per example. The true label plays no part.

    Attributes:
        prediction: (n,) int64; ABSTAIN = -1.
        radius: (n,) float64, rounded down; 0.0 where abstaining.
        norm: The norm of the ball.
        subject: The classifier the statement is about: "f", or "g(...)" for a smoothed one.
        guarantee: Deterministic() or PerExample(alpha).
        method: The frozen method object that made it; its repr is the provenance.
        samples: (n,) int64, noisy copies classified per example; 0 where nothing was sampled.
        counts: (n, classes) int64 votes behind the bound, or None.
        w: (n,) float64, the one uniform draw behind each randomised bound, or None.
        region: "ball" for the whole ball, "box" for its intersection with the input box, "lattice" for those of its
            points that lie on the inputs' lattice in the box.
        arithmetic: The arithmetic in which the statement holds.
    """

    prediction: Tensor
    radius: Tensor
    norm: Norm
    subject: str
    guarantee: Guarantee
    method: Any
    samples: Tensor
    counts: Tensor | None = None
    w: Tensor | None = None
    region: Region = "ball"
    arithmetic: str = "real-valued noise; classifier in floating point"

    def __post_init__(self) -> None:
        n = self.prediction.shape[0]
        for name, value, dtype in (
            ("prediction", self.prediction, torch.int64),
            ("radius", self.radius, torch.float64),
            ("samples", self.samples, torch.int64),
        ):
            if value.shape != (n,) or value.dtype != dtype:
                raise InputError(f"need {name} of shape ({n},), {dtype}; got {tuple(value.shape)}, {value.dtype}")
        if not bool((self.radius >= 0).all()):
            raise InputError(f"need radius >= 0; got {self.radius.min().item()}")
        if bool((self.radius[self.prediction == ABSTAIN] != 0).any()):
            raise InputError("an abstention certifies nothing: its radius must be 0")

    def __len__(self) -> int:
        return self.prediction.shape[0]

    def first(self, count: int) -> "Certificate":
        """The certificate of the first `count` examples alone."""
        parts = {name: getattr(self, name) for name in ("prediction", "radius", "samples", "counts", "w")}
        return replace(self, **{name: None if part is None else part[:count] for name, part in parts.items()})

    def records(self) -> list[dict[str, Any]]:
        """One plain dictionary per example: what a store keeps."""
        return [
            {
                "prediction": int(self.prediction[i]),
                "radius": float(self.radius[i]),
                "samples": int(self.samples[i]),
                "counts": None if self.counts is None else [int(c) for c in self.counts[i]],
                "w": None if self.w is None else float(self.w[i]),
            }
            for i in range(len(self))
        ]

    def header(self) -> dict[str, Any]:
        """What all its examples share, as plain values."""
        return {
            "norm": self.norm,
            "subject": self.subject,
            "alpha": self.guarantee.alpha if isinstance(self.guarantee, PerExample) else None,
            "method": self.method if isinstance(self.method, str) else repr(self.method),
            "region": self.region,
            "arithmetic": self.arithmetic,
        }

    @classmethod
    def from_record(cls, header: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> "Certificate":
        """Rebuild a certificate from `header()` and `records()`; `method` is then its repr, a string."""
        counts = [r["counts"] for r in records]
        w = [r["w"] for r in records]
        return cls(
            prediction=torch.tensor([r["prediction"] for r in records], dtype=torch.int64),
            radius=torch.tensor([r["radius"] for r in records], dtype=torch.float64),
            samples=torch.tensor([r["samples"] for r in records], dtype=torch.int64),
            counts=None if any(c is None for c in counts) else torch.tensor(counts, dtype=torch.int64),
            w=None if any(v is None for v in w) else torch.tensor(w, dtype=torch.float64),
            norm=header["norm"],
            subject=header["subject"],
            guarantee=Deterministic() if header["alpha"] is None else PerExample(header["alpha"]),
            method=header["method"],
            region=header["region"],
            arithmetic=header["arithmetic"],
        )
