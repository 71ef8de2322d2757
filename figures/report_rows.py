"""What a store's rows say about each network in it: its runs, and what is known of every example's robust radius."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis.campaign import threat_of
from certify.accuracy import FloatArray
from certify.bracket import bracket
from certify.campaign.attack_rows import AttackResults, attack_results
from certify.campaign.results import IntArray, Results
from certify.campaign.store import Store
from certify.errors import InputError
from figures.compare import identity, short

F = "f"
"""The subject of attacks and of deterministic verifiers: the network itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Proved:
    """A run of certificates, with the name that pictures and tables share."""

    name: str
    results: Results

    @property
    def norm(self) -> str:
        """Of the radii."""
        return self.results.certificate.norm


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A run of attacks, with its name."""

    name: str
    results: AttackResults

    @property
    def norm(self) -> str:
        """Of the distances."""
        return threat_of(self.results.settings).norm

    @property
    def eps(self) -> float:
        """The budget, beyond which nothing was looked for."""
        return threat_of(self.results.settings).eps


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """One network on one data set, with all runs about it.

    Attributes:
        settings: Of its first run: what it is called, and the digests by which it is known.
        proved: Runs of certificates.
        found: Runs of attacks, all on the network itself.
    """

    settings: Mapping[str, Any]
    proved: tuple[Proved, ...]
    found: tuple[Found, ...]

    def subjects(self) -> list[str]:
        """The network itself first, then each smoothed classifier in the order of the runs."""
        names = [F] * bool(self.found) + [p.results.certificate.subject for p in self.proved]
        return sorted(dict.fromkeys(names), key=lambda name: name != F)

    def proved_of(self, subject: str, norm: str | None = None) -> list[Proved]:
        """The runs of certificates about a subject, in a norm or in any."""
        runs = [p for p in self.proved if p.results.certificate.subject == subject]
        return [p for p in runs if norm in (None, p.norm)]

    def found_of(self, subject: str, norm: str | None = None) -> list[Found]:
        """The runs of attacks on a subject; what was found on f bounds nothing of a smoothed classifier."""
        return [a for a in self.found if subject == F and norm in (None, a.norm)]

    def norms(self, subject: str) -> list[str]:
        """In which anything is known of a subject, in the order of the runs."""
        runs = [*self.proved_of(subject), *self.found_of(subject)]
        return list(dict.fromkeys(run.norm for run in runs))


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """lower <= r* <= upper for every example of a subject, in one norm, over all runs.

    Attributes:
        example: (k,) ids, rising.
        label: (k,) int64.
        lower: (k,) the largest proved; 0.0 where nothing is.
        upper: (k,) the nearest error found; +inf where none was.
        proved_by: (k,) name of the run behind `lower`; "" where nothing is proved.
        found_by: (k,) the attack behind `upper`; "" where nothing was found.
        attacked: (k,) bool, whether any attack met the example.
        budget: (k,) the largest budget of an attack that met the example: beyond it nothing was looked for; 0.0 where
            none did.
    """

    example: IntArray
    label: IntArray
    lower: FloatArray
    upper: FloatArray
    proved_by: list[str]
    found_by: list[str]
    attacked: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    budget: FloatArray

    @property
    def reach(self) -> float:
        """The largest budget of all; some examples may have met smaller ones alone."""
        return float(np.max(self.budget, initial=0.0))

    @property
    def extents(self) -> list[tuple[float, int]]:
        """Each budget that is some example's largest, rising, and how many examples' it is."""
        budgets, counts = np.unique(self.budget[self.attacked], return_counts=True)
        return list(zip(budgets.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a page comes from.

    Attributes:
        store: The store's file name.
        sessions: Of `Store.sessions`.
        record: What was measured beside the rows, see `report_run`; {} where there is nothing.
        rho: Failure probability of each interval.
    """

    store: str
    sessions: Mapping[str, list[tuple[str, Mapping[str, Any]]]]
    record: Mapping[str, Any]
    rho: float


def seed_of(settings: Mapping[str, Any]) -> str:
    """What a run drew from, in words."""
    return f"seed {settings['seed']}" if "seed" in settings else "no randomness"


def networks(store: Store) -> list[Network]:
    """Every network of a store, in the order of its runs; one network on two data sets counts as two.

    Raises:
        InputError: the store is damaged, or holds neither certificates nor attacks.
    """
    made = [
        Proved(f"{short(str(r.certificate.header()['method']))} (run {number})", r)
        for number, r in enumerate(store.results(), start=1)
    ]
    found = [Found(f"attack run {number}", a) for number, a in enumerate(attack_results(store), start=1)]
    if not made and not found:
        raise InputError(f"the store {store.path} holds neither certificates nor attacks yet")
    runs = [*made, *found]
    keys = list(dict.fromkeys(identity(run.results.settings) for run in runs))
    return [
        Network(
            settings=next(run.results.settings for run in runs if identity(run.results.settings) == key),
            proved=tuple(p for p in made if identity(p.results.settings) == key),
            found=tuple(a for a in found if identity(a.results.settings) == key),
        )
        for key in keys
    ]


def known(network: Network, subject: str, norm: str) -> Known:
    """Join every run about a subject, in one norm.

    Raises:
        InputError: an attack was free to leave the box that a certificate does not look beyond.
        Contradiction: a deterministic certificate reaches a counterexample.
    """
    proved, found = network.proved_of(subject, norm), network.found_of(subject, norm)
    for a in found:
        inside = [p.name for p in proved if p.results.certificate.region != "ball"]
        if inside and threat_of(a.results.settings).box is None:
            raise InputError(
                f"need attacks in the box that {inside[0]} is about; {a.name} had none: keep the two in separate stores"
            )
    labels: dict[int, int] = {}
    for p in proved:
        labels |= dict(zip(p.results.example.tolist(), p.results.label.tolist(), strict=True))
    for a in found:
        labels |= dict(zip(a.results.rows.example.tolist(), a.results.rows.label.tolist(), strict=True))
    example = np.array(sorted(labels), np.int64)
    k = len(example)
    joined = Known(
        example=example,
        label=np.array([labels[e] for e in example.tolist()], np.int64),
        lower=np.zeros(k),
        upper=np.full(k, np.inf),
        proved_by=[""] * k,
        found_by=[""] * k,
        attacked=np.zeros(k, np.bool_),
        budget=np.zeros(k),
    )
    for a in found:
        _take_upper(joined, a)
    for p in proved:
        _take_lower(joined, p)
    return joined


def _take_upper(joined: Known, run: Found) -> None:
    rows, attacks = run.results.rows, run.results.settings["attacks"]
    place = np.searchsorted(joined.example, rows.example)
    joined.attacked[place] = True
    joined.budget[place] = np.maximum(joined.budget[place], run.eps)
    for i, at in enumerate(place.tolist()):
        if rows.distance[i] < joined.upper[at]:
            joined.upper[at] = rows.distance[i]
            by = int(rows.broken_by[i])
            joined.found_by[at] = "wrong as it is" if by < 0 else f"{short(attacks[by])} ({run.name})"


def _take_lower(joined: Known, run: Proved) -> None:
    place = np.searchsorted(joined.example, run.results.example)
    label = torch.from_numpy(run.results.label)
    lower = bracket(run.results.certificate, label, torch.from_numpy(joined.upper[place])).lower
    for i, at in enumerate(place.tolist()):
        if lower[i] > joined.lower[at]:
            joined.lower[at] = lower[i]
            joined.proved_by[at] = run.name
