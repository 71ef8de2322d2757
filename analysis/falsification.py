"""Attacking certificates inside their radius: a proof that is right survives it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attack
from analysis.attacks.smoothadv import SmoothAdv
from certify.binomial import binomial_test
from certify.certificate import ABSTAIN, Certificate, PerExample
from certify.errors import Contradiction, InputError
from certify.rng import Stream
from certify.smoothing import Smoothing
from certify.threat import Threat


@dataclass(frozen=True, slots=True)
class Falsification:
    """What attacks inside the certified balls found.

    Attributes:
        attacked: Certificates of positive radius that were attacked.
        hits: Their positions where a counterexample inside the ball was confirmed.
        expected: The largest expected number of hits if every certificate holds with its stated probability.
        p_value: Exact: the chance of so many hits or more, if each has at most that probability.
        attack: repr of the attack.
    """

    attacked: int
    hits: tuple[int, ...]
    expected: float
    p_value: float
    attack: str

    def __str__(self) -> str:
        return (
            f"{len(self.hits)} of {self.attacked} certificates broken inside their radius "
            f"(at most {self.expected:.3g} expected, p = {self.p_value:.3g}) by {self.attack}"
        )


def falsify_smoothing(
    certificate: Certificate,
    model: nn.Module,
    x: Tensor,
    attack: SmoothAdv,
    *,
    rng: Stream,
    votes: int = 10_000,
    alpha: float = 1e-6,
    watch: Callable[[], object] = lambda: None,
) -> Falsification:
    """Attack the smoothed classifier inside each certified ball.

    The attack knows the certified class, and looks for inputs where g predicts another. What it finds counts once a
    fresh vote of `votes` copies says so too, which is wrong with probability at most `alpha`.

    Args:
        certificate: About the smoothing of `model` under `attack.noise`.
        model: The base classifier, in evaluation mode.
        x: (n, ...) the certified inputs.
        attack: With its noise, steps and restarts.
        rng: Example i draws from its child i.
        votes: Copies of a confirming vote.
        alpha: Failure probability of a confirming vote.
        watch: Called after each example attacked, for progress.

    Returns: The hits and an exact test of their number.

    Raises:
        InputError: the certificate is deterministic, speaks of lattice points alone, or lengths differ.
    """
    if not isinstance(certificate.guarantee, PerExample):
        raise InputError("need a certificate of a smoothed classifier; got a deterministic one")
    _check_region(certificate)
    confirm = Smoothing(attack.noise, n=votes, alpha=alpha, box=None)

    hits = []
    indices = certified(certificate, x)
    for i in indices:
        label = certificate.prediction[i : i + 1].to(x.device)
        # The certificate holds in the whole ball, beyond the box too; the attack is free to use it.
        threat = Threat(certificate.norm, float(certificate.radius[i]), box=None)
        found = attack(model, x[i : i + 1], label, threat=threat, rng=rng.child(i, "attack"))
        if bool(found.success):
            said = confirm.predict(model, found.adversarial, rng=rng.child(i, "confirm"))
            if int(said) not in (ABSTAIN, int(label)):
                hits.append(i)
        watch()
    chance = min(1.0, certificate.guarantee.alpha + alpha)
    p_value = binomial_test(len(hits), len(indices), chance, tail="upper") if indices else 1.0
    return Falsification(len(indices), tuple(hits), chance * len(indices), p_value, repr(attack))


def falsify_deterministic(
    certificate: Certificate,
    model: nn.Module,
    x: Tensor,
    attacks: Sequence[Attack],
    *,
    rng: Stream,
    watch: Callable[[], object] = lambda: None,
) -> Falsification:
    """Attack the classifier itself inside each certified ball: a single hit refutes the certifier.

    Args:
        certificate: Deterministic, about `model`.
        model: The certified classifier, in evaluation mode.
        x: (n, ...) the certified inputs.
        attacks: Each is tried on each example.
        rng: Example i draws from its child i.
        watch: Called after each example attacked, for progress.

    Raises:
        InputError: the certificate is probabilistic, is about another classifier than the network itself, speaks of
            lattice points alone, or lengths differ.
        Contradiction: a counterexample lies inside a certified ball.
    """
    if isinstance(certificate.guarantee, PerExample):
        raise InputError(f"need a deterministic certificate; got {certificate.guarantee!r}")
    if certificate.subject != "f":
        raise InputError(
            f"need a certificate about f, the network itself; got {certificate.subject}: the attacks query f, "
            "whose errors refute nothing that is proved of another classifier"
        )
    _check_region(certificate)
    box = (0.0, 1.0) if certificate.region == "box" else None
    indices = certified(certificate, x)
    for i in indices:
        label = certificate.prediction[i : i + 1].to(x.device)
        threat = Threat(certificate.norm, float(certificate.radius[i]), box=box)
        for number, attack in enumerate(attacks):
            found = attack(model, x[i : i + 1], label, threat=threat, rng=rng.child(i, number))
            # Within rounding of the sphere nothing is refuted.
            if bool(found.success) and float(found.distance) < threat.eps:
                raise Contradiction(
                    f"{certificate.subject}: example {i} is certified to {threat.eps:.17g} in {certificate.norm}, "
                    f"and {attack!r} changes its class at {float(found.distance):.17g}"
                )
        watch()
    return Falsification(len(indices), (), 0.0, 1.0, ", ".join(map(repr, attacks)))


def _check_region(certificate: Certificate) -> None:
    """Refuse certificates that gradient attacks cannot refute.

    Raises:
        InputError: the region is the lattice.
    """
    if certificate.region == "lattice":
        raise InputError(
            f"need a certificate of the region 'ball' or 'box'; got 'lattice', of {certificate.subject}: "
            "the attacks move off the lattice, where nothing is certified"
        )


def certified(certificate: Certificate, x: Tensor) -> list[int]:
    """Positions of the certificates that say anything: those of positive radius.

    Raises:
        InputError: lengths differ.
    """
    if x.shape[0] != len(certificate):
        raise InputError(f"need one input per certificate, {len(certificate)}; got {x.shape[0]}")
    return torch.nonzero(certificate.radius > 0)[:, 0].tolist()
