"""The smoothed classifier as a module, so that any attack library can attack the thing that was certified."""

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from certify.errors import InputError, check_count
from certify.noise import Noise
from certify.rng import Stream


class SmoothedClassifier(nn.Module):
    """g as an nn.Module: mean over noisy copies of the base classifier's softmax, or of its votes.

    It estimates g from `samples` copies; it proves nothing.

    Args:
        base: (n, ...) -> (n, classes) logits.
        noise: The smoothing distribution.
        samples: Noisy copies per input.
        stream: Where the noise comes from.
        hard: True counts votes (no gradient); False averages softmax probabilities, differentiable.
        fresh: True draws new noise at every call, as an attack with expectation over noise needs; False uses the same
            noise for every call, so that the module is a deterministic function.
        chunk: Noisy copies per forward pass of the base classifier.

    Attributes:
        calls: Forward passes so far; with `fresh`, part of the name of the next noise.

    Raises:
        InputError: `samples` or `chunk` is not positive.

    Source: Salman et al. (2019), "Provably robust deep learning via adversarially trained smoothed classifiers".
    """

    def __init__(
        self,
        base: nn.Module,
        noise: Noise,
        samples: int,
        *,
        stream: Stream,
        hard: bool = False,
        fresh: bool = True,
        chunk: int = 1024,
    ) -> None:
        super().__init__()
        check_count("samples", samples)
        check_count("chunk", chunk)
        self.base, self.noise, self.samples, self.stream = base, noise, samples, stream
        self.hard, self.fresh, self.chunk = hard, fresh, chunk
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (n, classes): the log of the mean, so that they serve as logits.

        A class without a vote has the log of half a vote in place of minus infinity.

        Raises:
            InputError: x is not (n, ...) in floating point.
        """
        if x.ndim < 2 or not x.is_floating_point():
            raise InputError(f"need x of shape (n, ...) in floating point; got {tuple(x.shape)}, {x.dtype}")
        stream = self.stream.child("call", self.calls if self.fresh else 0)
        self.calls += 1
        probabilities = torch.stack([self._mean(x[i], stream.child(i)) for i in range(x.shape[0])])
        return probabilities.clamp_min(0.5 / self.samples if self.hard else torch.finfo(x.dtype).tiny).log()

    def _mean(self, x: Tensor, stream: Stream) -> Tensor:
        """Mean class probabilities (classes,) of one input, the noise as a constant of the graph."""
        total: Tensor | float = 0.0
        for first in range(0, self.samples, self.chunk):
            size = min(self.chunk, self.samples - first)
            with torch.no_grad():
                noisy = x.new_empty((size, *x.shape))
                self.noise.perturb(noisy, x.detach(), stream.child(first).generator(x.device))
            # The value is noisy; the gradient is that of x + noise: straight through for noise that is not additive.
            logits = self.base(noisy + (x - x.detach()))
            if self.hard:
                total = total + one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype).sum(0)
            else:
                total = total + logits.softmax(1).sum(0)
        assert isinstance(total, Tensor)
        return total / self.samples
