"""Randomized smoothing: the classifier g(x) = the class most likely under noise, predicted and certified from votes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certify.binomial import (
    binomial_test,
    check_alpha,
    fewest_votes,
    lower_confidence_bound,
    randomized_lower_bound,
    upper_confidence_bound,
)
from certify.certificate import ABSTAIN, Certificate, PerExample
from certify.errors import InputError, check_count
from certify.noise import Noise
from certify.rng import Stream
from certify.threat import Box, check_box
from certify.voting import BaseClassifier, check_inputs, count_votes, label_streams, leaders


@dataclass(frozen=True, slots=True)
class Smoothing:
    """Certify a smoothed classifier with a number of votes fixed in advance.

    Args:
        noise: The smoothing distribution; its norm is the certificate's.
        n0: Votes that choose the class; they are not used again.
        n: Fresh votes that bound its probability.
        alpha: Failure probability per example.
        runner_up: Share of alpha spent on an upper bound for the strongest other class; 0 bounds the top class alone
            and takes the rest as one rival, as Cohen et al. do. With several close rivals 0.1 certifies much more.
        randomized: Bound the top class with the randomised Clopper-Pearson bound, exact where the plain one has slack.
            Each example draws one W, from its stream, and the certificate keeps it. Needs runner_up = 0.
        box: Where inputs must lie; None for data that is not pixels. The noise is not clipped to it.

    Raises:
        InputError: a count, alpha, the share or the box is out of range; alpha so small that n votes never certify.

    Source: Cohen, Rosenfeld & Kolter (2019), CERTIFY and PREDICT; the two-class bound is theirs in theory and
        unused in their code.
    """

    noise: Noise
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    runner_up: float = 0.0
    randomized: bool = False
    box: Box = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_count("n0", self.n0)
        check_count("n", self.n)
        check_alpha(self.alpha)
        check_box(self.box)
        if not 0 <= self.runner_up < 1:
            raise InputError(f"need 0 <= runner_up < 1; got {self.runner_up!r}")
        if self.randomized and self.runner_up > 0:
            raise InputError(f"need runner_up = 0 with randomized bounds; got {self.runner_up!r}")
        fewest = fewest_votes(self.alpha)
        if self.runner_up == 0 and self.n < fewest:
            raise InputError(f"need n >= {fewest} votes to certify anything at alpha = {self.alpha:g}; got {self.n}")

    def __call__(self, model: nn.Module | BaseClassifier, x: Tensor, *, rng: Stream | Sequence[Stream]) -> Certificate:
        """Certify each input.

        Proves: For each example that is not abstained on, g predicts `prediction` in the closed ball of `radius` in the
        noise's norm, with probability at least 1 - alpha per example over the draws. g is the smoothing of the base
        classifier as evaluated (its precision included), with real-valued noise.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode; or a BaseClassifier.
            x: (n, ...) float inputs in the box.
            rng: One stream, or one per example.

        Returns: Certificate with the counts of the n votes.

        Raises:
            InputError: training mode, shape, range or logits are wrong.
        """
        base, streams = self._ready(model, x, rng)
        chosen = leaders(count_votes(base, x, self.noise, [s.child("select") for s in streams], self.n0))[0][:, 0]
        counts = count_votes(base, x, self.noise, [s.child("estimate") for s in streams], self.n)
        w = torch.tensor([s.child("w").uniform() for s in streams], dtype=torch.float64) if self.randomized else None
        radius = torch.tensor(
            [
                self.radius(row.tolist(), int(a), None if w is None else float(w[i]))
                for i, (row, a) in enumerate(zip(counts, chosen, strict=True))
            ],
            dtype=torch.float64,
        )
        return Certificate(
            prediction=torch.where(radius > 0, chosen, ABSTAIN),
            radius=radius,
            norm=self.noise.norm,
            subject=subject(self.noise, base),
            guarantee=PerExample(self.alpha),
            method=self,
            samples=torch.full_like(chosen, self.n0 + self.n),
            counts=counts,
            w=w,
            region=self.noise.region,
            arithmetic=self.noise.arithmetic,
        )

    def radius(self, counts: Sequence[int], chosen: int, w: float | None = None) -> float:
        """The radius that the n votes prove for the class chosen beforehand.

        Proves: With probability at least 1 - alpha over the votes, g predicts `chosen` within this radius, provided
        that `chosen` does not depend on these votes.

        Args:
            counts: Votes per class, n in total.
            chosen: The class that other votes selected.
            w: This example's one uniform draw, where `randomized`.

        Returns: Radius in input units; 0.0 where nothing is proved.
        """
        return self.noise.radius(*self.probabilities(counts, chosen, w))

    def probabilities(self, counts: Sequence[int], chosen: int, w: float | None = None) -> tuple[float, float | None]:
        """A lower bound on the chosen class, and an upper bound on every other one where alpha was spent on it.

        Proves: Both hold together with probability at least 1 - alpha, if `chosen` does not depend on these votes.
        """
        if self.randomized:
            if w is None:
                raise InputError("need the example's w, drawn once, for a randomized bound; got None")
            return randomized_lower_bound(counts[chosen], self.n, self.alpha, w), None
        p_a = lower_confidence_bound(counts[chosen], self.n, self.alpha * (1 - self.runner_up))
        if self.runner_up == 0:
            return p_a, None
        # The largest *other* count, not the runner-up of the selection votes: the bound is monotone in the count, and
        # the maximum is at least the count of whichever class is truly second, so no union over classes is due.
        rival = max(c for k, c in enumerate(counts) if k != chosen)
        return p_a, upper_confidence_bound(rival, self.n, self.alpha * self.runner_up)

    def predict(self, model: nn.Module | BaseClassifier, x: Tensor, *, rng: Stream | Sequence[Stream]) -> Tensor:
        """Predict each input's smoothed class, or abstain.

        Proves: With probability at least 1 - alpha per example, the prediction is g(x) or ABSTAIN.

        Args:
            model: As in `__call__`.
            x: (n, ...) float inputs in the box.
            rng: One stream, or one per example.

        Returns: (n,) int64; ABSTAIN = -1 where a two-sided exact test of the two leading classes does not reject 1/2.

        Raises:
            InputError: as in `__call__`.

        Source: Cohen et al. (2019), PREDICT; Hung & Fithian (2019).
        """
        base, streams = self._ready(model, x, rng)
        label, votes = leaders(count_votes(base, x, self.noise, [s.child("predict") for s in streams], self.n))
        decided = [
            2 * binomial_test(first, first + second, 0.5, tail="upper") <= self.alpha
            for first, second in votes.tolist()
        ]
        return torch.where(torch.tensor(decided), label[:, 0], ABSTAIN)

    def _ready(
        self, model: nn.Module | BaseClassifier, x: Tensor, rng: Stream | Sequence[Stream]
    ) -> tuple[BaseClassifier, list[Stream]]:
        check_inputs(x, self.box)
        return BaseClassifier.of(model, x), label_streams(rng, x.shape[0])


def subject(noise: object, base: BaseClassifier) -> str:
    """The name of the smoothed classifier in certificates and stores."""
    return f"g({noise!r})" if base.name == "f" else f"g({noise!r}; {base.name})"
