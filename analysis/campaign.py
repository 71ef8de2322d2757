"""Attack the examples of a data set into a store, from where an earlier attempt stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attack
from analysis.evaluation import Rung, blocks, classify, climb, describe, explicit
from certify.campaign.attack_rows import AttackResults, AttackRows, open_attack_run
from certify.campaign.executor import Executor, Portable, Serial
from certify.campaign.progress import progress
from certify.campaign.runner import environment, select
from certify.campaign.store import Store
from certify.campaign.weights import Data, model_digest, tensor_digest
from certify.errors import InputError
from certify.rng import Stream
from certify.threat import Threat

BLOCK = 100
IN_MEMORY = ":memory:"
"""SQLite's name of a store that is gone when it is closed."""


def attack_campaign(
    store: str | Path,
    attacks: Sequence[Attack],
    model: nn.Module,
    data: Data,
    *,
    names: tuple[str, str],
    threat: Threat,
    indices: str = ":",
    seed: int = 0,
    block: int = BLOCK,
    add: bool = False,
    executor: Executor = Serial(),
) -> AttackResults:
    """Run a ladder of attacks on the chosen examples and store what it found, block by block.

    The chosen examples are cut into blocks by their place among the chosen. A block is computed whole, from streams
    named by its first example's id, and stored in one transaction; where a row is missing, its whole block is computed
    again. So the rows are those of an uninterrupted run, bit for bit, whenever and however often it was stopped.

    Args:
        store: The SQLite file, made where missing; IN_MEMORY for none.
        attacks: Cheap ones first: each meets only what survived the ones before it.
        model: In evaluation mode, on its device.
        data: The data set.
        names: What to call the model and the data set in the record.
        threat: Norm, budget and box.
        indices: Which examples, as a slice.
        seed: The campaign's seed.
        block: Examples attacked together, and per transaction. Like `indices` part of the settings: both decide which
            examples share a batch, on which the last bits of a network's outputs depend.
        add: Allow a run with other settings beside those in the store.
        executor: Who computes the blocks; the numbers do not depend on it. This process alone writes to the store.

    Returns: All rows of this run, those of earlier sessions included.

    Raises:
        InputError: the store holds other settings, or an input is wrong. Rows written so far stay.
    """
    if block < 1 or not attacks:
        raise InputError(f"need at least one attack and block >= 1; got {len(attacks)}, {block}")
    x, y, ids = select(data, indices)
    ladder = _Ladder(tuple(attacks), Portable(model), threat)
    device = ladder.device
    classify(model, x[:1].to(device), y[:1].to(device), threat)  # refuses what does not fit before a file is made
    settings = {
        "model": names[0],
        "model_sha256": model_digest(model),
        "data": names[1],
        "data_sha256": tensor_digest(data.x, data.y, data.id),
        "attacks": [repr(explicit(attack, threat)) for attack in attacks],
        "threat": {**asdict(threat), "box": None if threat.box is None else list(threat.box)},
        "indices": indices,
        "block": block,
        "seed": seed,
        "torch": torch.__version__,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
    root = Stream(seed)

    def item(b: slice) -> _Item:
        # A view would pickle all that it is a view of.
        return x[b].clone(), y[b].clone(), ids[b], root.child(ids[b.start])

    with Store(store, create=True) as file:
        record = open_attack_run(file, settings, {**environment(device), "executor": repr(executor)}, add=add)
        done = record.done()
        pending = [b for b in blocks(len(ids), block) if not done.issuperset(ids[b])]
        left = sum(b.stop - b.start for b in pending)
        if pending:
            with (
                progress(f"attack {names[1]}", total=len(ids), done=len(ids) - left) as bar,
                executor(ladder) as results,
            ):
                for _, rows, seconds in results(map(item, pending)):
                    record.append(replace(rows, seconds=np.full(len(rows), seconds / len(rows))))
                    bar.advance(len(rows))
        return record.results()


_Item = tuple[Tensor, Tensor, Sequence[int], Stream]


@dataclass(frozen=True, slots=True, eq=False)
class _Ladder:
    """Attack a block; the rows are without their seconds."""

    attacks: tuple[Attack, ...]
    network: Portable
    threat: Threat

    @property
    def device(self) -> torch.device:
        return self.network.device

    def __call__(self, item: _Item) -> AttackRows:
        x, y, ids, rng = item
        x, y = x.to(self.device), y.to(self.device)
        found = climb(self.network.model, x, y, self.attacks, threat=self.threat, rng=rng)
        return AttackRows(
            example=np.array(ids, np.int64),
            label=y.cpu().numpy(),
            prediction=found.prediction.numpy(),
            distance=found.distance.numpy(),
            broken_by=found.broken_by.numpy(),
            forwards=found.forwards.numpy(),
            backwards=found.backwards.numpy(),
            seconds=np.zeros(len(ids)),
        )


def describe_results(results: AttackResults, *, rho: float = 0.05) -> str:
    """Robust accuracy of a stored run, with all that it depends on, as `describe` words it.

    Args:
        results: From `attack_campaign` or a store.
        rho: Failure probability of the interval; 0 < rho < 1.

    Raises:
        InputError: rho is out of range.
    """
    rows, settings = results.rows, results.settings
    robust, clean = int(rows.robust.sum()), int(rows.correct.sum())
    rungs = rungs_of(rows, settings["attacks"])
    return describe(robust, clean, len(rows), threat_of(settings), rungs, rho=rho, seed=settings["seed"])


def threat_of(settings: Mapping[str, Any]) -> Threat:
    """The threat that a run's settings record."""
    threat = settings["threat"]
    return Threat(threat["norm"], threat["eps"], None if threat["box"] is None else tuple(threat["box"]))


def rungs_of(rows: AttackRows, attacks: Sequence[str]) -> list[Rung]:
    """Each attack of a ladder on survivors: an example is met by all up to the one that broke it."""
    return [
        Rung(
            attack=attack,
            attacked=int((rows.correct & ((rows.broken_by < 0) | (rows.broken_by >= k))).sum()),
            broken=int((rows.broken_by == k).sum()),
            forwards=int(rows.forwards[:, k].sum()),
            backwards=int(rows.backwards[:, k].sum()),
        )
        for k, attack in enumerate(attacks)
    ]
