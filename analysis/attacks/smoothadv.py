"""Gradient ascent against a smoothed classifier, with expectation over its noise."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries
from analysis.attacks.geometry import project, random_start, steepest
from certify.binomial import check_alpha, fewest_votes
from certify.certificate import ABSTAIN
from certify.errors import InputError, check_count
from certify.noise import Noise
from certify.rng import Stream
from certify.smoothed import SmoothedClassifier
from certify.smoothing import Smoothing
from certify.threat import Threat
from certify.voting import BaseClassifier


@dataclass(frozen=True, slots=True)
class SmoothAdv:
    """Increase -log of the mean softmax over noisy copies; the smoothed classifier g judges, by its votes.

    The first start is x, as published, the others are random. A point counts as misclassified where PREDICT of g, on
    votes of its own, returns another class than the label: not where the base classifier errs, nor where g abstains.

    Args:
        noise: The smoothing distribution of g.
        samples: Noisy copies per gradient (the paper's m).
        steps: Gradient steps per restart, each of length 2 * eps / steps in the threat's norm.
        restarts: Starts.
        votes: Noisy copies that judge x and the end of each restart, fresh each time.
        alpha: The chance that one such judgement names a class that g does not predict.
        fresh: Draw new noise at every step. False keeps a restart's noise for all its steps, as published: the attack
            then adapts to those draws.

    Raises:
        InputError: a count or alpha is out of range, or the votes are too few to ever decide at alpha.

    Source: Salman et al. (2019), "Provably robust deep learning via adversarially trained smoothed classifiers";
        Cohen et al. (2019), PREDICT.
    """

    noise: Noise
    samples: int = 32
    steps: int = 100
    restarts: int = 10
    votes: int = 1000
    alpha: float = 0.001
    fresh: bool = True

    def __post_init__(self) -> None:
        check_count("samples", self.samples)
        check_count("steps", self.steps)
        check_count("restarts", self.restarts)
        check_count("votes", self.votes)
        check_alpha(self.alpha)
        fewest = fewest_votes(self.alpha / 2)  # PREDICT's test is two-sided
        if self.votes < fewest:
            raise InputError(f"need votes >= {fewest} to ever decide at alpha = {self.alpha:g}; got {self.votes}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for inputs within the threat that g misclassifies.

        Args:
            model: The base classifier, (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) float inputs in the box.
            y: (n,) labels.
            threat: An Linf, L2 or L1 ball.
            rng: Example i draws from the children (purpose, restart, i).

        Returns: Attacked about g. Costs count noisy copies: `votes` forward passes a judgement, `samples` passes
            forwards and backwards a step. Its loss is (n, restarts * steps), the objective before each step; nan after
            the restart that broke an example.

        Raises:
            InputError: training mode, or inputs that do not fit.
        """
        queries = Queries(model, x, y, threat)
        base = BaseClassifier(model, x[:1])
        trace = torch.full((x.shape[0], self.restarts, self.steps), torch.nan)
        for i in range(x.shape[0]):
            self._judge(queries, base, queries.x[i : i + 1], i, rng.child("votes", "start", i))
            for restart in range(self.restarts):
                if queries.success[i]:
                    break
                z, trace[i, restart] = self._climb(queries, i, restart, rng)
                self._judge(queries, base, z, i, rng.child("votes", restart, i))
        return queries.result(self, trace.flatten(1))

    def _climb(self, queries: Queries, i: int, restart: int, rng: Stream) -> tuple[Tensor, Tensor]:
        """One restart for one example: its end (1, ...) and the objective before each step (steps,)."""
        x, threat, label = queries.x[i : i + 1], queries.threat, queries.y[i]
        g = SmoothedClassifier(
            queries.model, self.noise, self.samples, stream=rng.child("noise", restart, i), fresh=self.fresh
        ).eval()
        z = x if restart == 0 else random_start(x, threat, rng.child("start", restart, i).generator(x.device))
        trace = torch.empty(self.steps)
        for taken in range(self.steps):
            z = z.detach().requires_grad_()
            with torch.enable_grad():
                value = -g(z)[0, label]
                (gradient,) = torch.autograd.grad(value, z)
            trace[taken] = float(value.detach())
            step = 2 * threat.eps / self.steps * steepest(gradient, threat)
            z = project(z.detach() + step, x, threat)
        queries.forwards[i] += self.samples * self.steps
        queries.backwards[i] += self.samples * self.steps
        return z, trace

    def _judge(self, queries: Queries, base: BaseClassifier, z: Tensor, i: int, stream: Stream) -> None:
        """Keep z (1, ...) if PREDICT of g returns a class, and not the label."""
        judge = Smoothing(self.noise, n=self.votes, alpha=self.alpha, box=queries.threat.box)
        said = int(judge.predict(base, z, rng=[stream])[0])
        queries.forwards[i] += self.votes
        wrong = torch.tensor([said not in (ABSTAIN, int(queries.y[i]))], device=z.device)
        queries.keep(z, wrong, torch.tensor([i], device=z.device))
