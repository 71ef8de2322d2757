"""CAT-RS: train hard where the smoothed classifier is confident, and give up hopeless noise where it is not."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.optim import Optimizer

from analysis.attacks.geometry import project, unit
from certify import InputError, Stream, Threat
from certify.campaign.weights import tensor_digest
from certify.errors import check_count
from certify.noise import Noise, check_scale
from certify.voting import BaseClassifier, count_votes
from paper_repro.training.copies import check_weight, logits_of, noisy_copies
from paper_repro.training.step import Step, descend, evaluating


class SmoothedPredictions:
    """What a smoothed classifier says of each training input, found again by the input's own bytes.

    Args:
        x: (n, ...) inputs.
        probabilities: (n, classes) rows of probabilities.

    Raises:
        InputError: shapes do not fit, or a row is no distribution.
    """

    def __init__(self, x: Tensor, probabilities: Tensor) -> None:
        if probabilities.ndim != 2 or len(probabilities) != len(x) or not len(x):
            raise InputError(f"need a row for each of n >= 1 inputs; got {tuple(probabilities.shape)} for {len(x)}")
        sums = probabilities.double().sum(1)
        if not (bool((probabilities >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-5)):
            raise InputError("need rows of probabilities, each >= 0 and with sum 1")
        self.probabilities = probabilities
        self._rows = {key: row for row, key in enumerate(_keys(x))}
        self._digest = tensor_digest(x, probabilities)

    @classmethod
    def of(
        cls, model: nn.Module, x: Tensor, *, noise: Noise, votes: int = 10_000, rng: Stream
    ) -> "SmoothedPredictions":
        """The shares of a base classifier's votes under noise.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode. Published: trained with Gaussian noise.
            x: (n, ...) training inputs.
            noise: Published: Gaussian with sigma 0.25, whatever the noise of the training to come.
            votes: For each input; that many forward passes.
            rng: Input i votes with its child i.

        Raises:
            InputError: what `count_votes` refuses.
        """
        check_count("votes", votes)
        counts = count_votes(BaseClassifier(model, x[:1]), x, noise, [rng.child(i) for i in range(len(x))], votes)
        return cls(x, counts.float() / votes)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, classes) probabilities of inputs (n, ...) that were predicted.

        Raises:
            InputError: an input was not.
        """
        rows = [self._rows.get(key, -1) for key in _keys(x)]
        if -1 in rows:
            raise InputError(
                f"need inputs whose smoothed prediction is known, unchanged; example {rows.index(-1)} is not"
            )
        return self.probabilities[rows].to(x)

    def __repr__(self) -> str:
        return f"SmoothedPredictions({self._digest})"


def _keys(x: Tensor) -> list[bytes]:
    return [hashlib.sha256(row.tobytes()).digest() for row in x.detach().cpu().contiguous().numpy()]


@dataclass(frozen=True, slots=True)
class CatRs:
    """Minimise 1/m * (the K smallest of CE(f(x + e_i), y)) + weight * [K = m] * max_i KL(t || p(x + d_i)).

    K is max(1, Binomial(m, share of the m copies classified as y)): noises beyond the confidence of the smoothed
    classifier are forgiven. t is what a pre-trained smoothed classifier says of x. d_i is a noise near e_i that
    increases KL(t || p(x + d_i)), with the model in evaluation mode.
    Cost: samples * (steps + 2) forward and as many backward passes per example, and the votes behind t.

    The defaults are those of sigma = 0.5; the weight was 0.5 at sigma = 0.25 and 2 at sigma = 1. The published runs cut
    a batch of 256 into `samples` parts and take a step on each: a batch of 64 here.

    Args:
        noise: Not clipped.
        targets: t; see `SmoothedPredictions.of`.
        weight: Of the divergence (lambda); >= 0.
        eps: L2 distance from e_i to d_i, before d_i is brought back to the moments of e_i; > 0.
        steps: Gradient steps of the attack, each of length 2 * eps / steps; >= 1.
        samples: Noisy copies (m); >= 1.

    Raises:
        InputError: a value is out of range.

    Source: Jeong, Kim & Shin (2023), "Confidence-aware training of smoothed classifiers for certified robustness".
    """

    noise: Noise
    targets: SmoothedPredictions
    weight: float = 1.0
    eps: float = 1.0
    steps: int = 4
    samples: int = 4

    def __post_init__(self) -> None:
        check_weight("weight", self.weight)
        check_scale("eps", self.eps)
        for name in ("steps", "samples"):
            check_count(name, getattr(self, name))

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        """One optimiser step on noisy copies of a batch and on worse ones; returns the loss before it.

        Raises:
            InputError: an input has no target.
        """
        m, target = self.samples, self.targets(x)
        generator = step.rng.generator(x.device)
        noisy = noisy_copies(self.noise, x, m, generator)
        logits = logits_of(model, noisy)
        with evaluating(model):
            worse = x + worse_noise(model, noisy - x, x, target, self.eps, self.steps)
        divergence = divergences(logits_of(model, worse), target).amax(0)

        confidence = (logits.argmax(-1) == y).to(x).mean(0)
        kept = (torch.rand(noisy.shape[:2], generator=generator, device=x.device) < confidence).sum(0).clamp_min(1)
        losses = cross_entropy(logits.flatten(0, 1), y.repeat(m), reduction="none").view(m, -1).sort(0).values
        bottom = (losses * (torch.arange(m, device=x.device)[:, None] < kept)).sum(0) / m
        return descend(optimizer, (bottom + self.weight * (kept == m) * divergence).mean())


def divergences(logits: Tensor, target: Tensor) -> Tensor:
    """(samples, n) KL(target || softmax) of logits (samples, n, classes) from targets (n, classes)."""
    return kl_div(logits.log_softmax(-1), target.expand_as(logits), reduction="none").sum(-1)


def worse_noise(model: nn.Module, noise: Tensor, x: Tensor, target: Tensor, eps: float, steps: int) -> Tensor:
    """Noises near the given ones at which the model departs further from the target.

    Args:
        model: In evaluation mode.
        noise: (samples, n, ...).
        x: (n, ...) inputs.
        target: (n, classes) probabilities.
        eps: L2 budget of each noise.
        steps: Gradient steps.

    Returns: (samples, n, ...), each with the mean and the root mean square of the noise it began as.
    """
    start = noise.flatten(0, 1)
    threat = Threat("L2", eps, None)
    worse = start
    for _ in range(steps):
        worse = worse.detach().requires_grad_()
        divergence = divergences(logits_of(model, x + worse.view_as(noise)), target)
        (gradient,) = torch.autograd.grad(divergence.sum(), worse)
        worse = project(worse.detach() + 2 * eps / steps * unit(gradient, "L2"), start, threat)
        worse = with_moments_of(start, worse)
    return worse.view_as(noise)


def with_moments_of(start: Tensor, noise: Tensor) -> Tensor:
    """Shift and scale each of (n, ...) noises to the mean and the root mean square of another: a likely draw again."""
    dims = tuple(range(1, start.ndim))
    centred, centred_start = noise - noise.mean(dims, keepdim=True), start - start.mean(dims, keepdim=True)
    tiny = torch.finfo(noise.dtype).tiny
    # Departs from paper: its code divides by the root mean square of `noise`, right up to the square of a mean near 0.
    scale = centred_start.square().mean(dims, keepdim=True) / centred.square().mean(dims, keepdim=True).clamp_min(tiny)
    return start.mean(dims, keepdim=True) + scale.sqrt() * centred
