"""Certify the examples of a data set into a store, from where an earlier attempt stopped."""

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certify.campaign.executor import Executor, Portable, Serial, Work
from certify.campaign.progress import progress
from certify.campaign.results import Results
from certify.campaign.store import Store
from certify.campaign.weights import Data, model_digest, tensor_digest
from certify.certificate import Certificate
from certify.errors import InputError
from certify.rng import Stream
from certify.voting import BaseClassifier, Execution

Method = Callable[..., Certificate]

_OPTIONAL = "auto-LiRPA"


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware of this process, for the record: all packages that compute numbers.

    Of them a run's settings name torch alone: a new version of another one goes on with a run, and its rows say so.
    auto_LiRPA, without which most methods do, is named where it is installed.
    """
    packages = ["robust-radius", "numpy", "scipy"]
    with suppress(PackageNotFoundError):
        version(_OPTIONAL)
        packages.append(_OPTIONAL)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        **{p: version(p) for p in packages},
        "torch": torch.__version__,  # with the build, such as +cu124, which the package's metadata may not name
        "device": name,
        "pid": os.getpid(),
    }


def select(data: Data, indices: str) -> tuple[Tensor, Tensor, list[int]]:
    """The examples at `start:stop:step`, as x, y and ids.

    Raises:
        InputError: the text is not a slice, or it selects nothing.
    """
    try:
        parts = [int(p) if p else None for p in indices.split(":")]
        chosen = slice(*parts) if 1 < len(parts) <= 3 else None
        if chosen is None or (chosen.step is not None and chosen.step < 1):
            raise ValueError
    except ValueError:
        raise InputError(f"need indices start:stop:step with step >= 1, such as 0:10000:20; got {indices!r}") from None
    chosen = slice(*chosen.indices(len(data.id)))  # torch takes no bounds beyond 64 bits
    ids = data.id[chosen].tolist()
    if not ids:
        raise InputError(f"need at least one example; {indices!r} selects none of {len(data.id)}")
    return data.x[chosen], data.y[chosen], ids


def run(
    store: str | Path,
    method: Method,
    model: nn.Module,
    data: Data,
    *,
    names: tuple[str, str],
    indices: str = ":",
    seed: int = 0,
    execution: Execution | None = None,
    batch: int = 8,
    add: bool = False,
    executor: Executor = Serial(),
) -> Results:
    """Certify the chosen examples and store each; rows already there are not computed again.

    Args:
        store: The SQLite file, made where missing.
        method: A certifier, (model, x, rng=...) -> Certificate.
        model: In evaluation mode, on its device.
        data: The data set.
        names: What to call the model and the data set in the record.
        indices: Which examples, as a slice.
        seed: The campaign's seed; each example draws from a stream named by its id.
        execution: How the base classifier is evaluated.
        batch: Examples per transaction; the numbers do not depend on it.
        add: Allow a run with other settings beside those in the store.
        executor: Who computes the batches; the numbers do not depend on it. This process alone writes to the store.

    Returns: All rows of this run, those of earlier sessions included.

    Raises:
        InputError: the store holds other settings, or an input is wrong. Rows written so far stay.
    """
    x, y, ids = select(data, indices)
    votes = _Votes(method, Portable(model), x[:1].clone(), execution)  # a view would pickle all that it is a view of
    settings = {
        **_settings(method, model, data, names, votes.device),
        "execution": repr(votes.base.execution),
        "seed": seed,
    }
    root = Stream(seed)

    def item(rows: list[int]) -> tuple[Tensor, list[Stream]]:
        return x[rows], [root.child(ids[i]) for i in rows]

    return _record(store, settings, votes, item, y, ids, batch=batch, add=add, executor=executor)


class _Votes:
    """Certify a batch by votes. Where it travels, the classifier is made ready anew: compiled code stays behind."""

    def __init__(self, method: Method, network: Portable, example: Tensor, execution: Execution | None) -> None:
        self.base = BaseClassifier(network.model, example, execution)
        self._method, self._network, self._example = method, network, example

    @property
    def device(self) -> torch.device:
        return self.base.device

    def __call__(self, item: tuple[Tensor, list[Stream]]) -> Certificate:
        x, streams = item
        return self._method(self.base, x, rng=streams)

    def __reduce__(self) -> tuple[Callable[..., "_Votes"], tuple[Method, Portable, Tensor, Execution]]:
        return _ready, (self._method, self._network, self._example, self.base.execution)


def _ready(method: Method, network: Portable, example: Tensor, execution: Execution) -> _Votes:
    votes = _Votes(method, network, example, execution)
    if votes.base.execution != execution:
        raise InputError(f"need workers that evaluate as the settings say, {execution}; got {votes.base.execution}")
    return votes


def verify(
    store: str | Path,
    method: Method,
    model: nn.Module,
    data: Data,
    *,
    names: tuple[str, str],
    indices: str = ":",
    batch: int = 100,
    add: bool = False,
    executor: Executor = Serial(),
) -> Results:
    """Verify the chosen examples by a method without chance and store each; rows already there are not computed again.

    Args:
        store: The SQLite file, made where missing.
        method: (model, x) -> Certificate, such as `IBP` or `CROWN`.
        model: In evaluation mode, on its device.
        data: The data set.
        names: What to call the model and the data set in the record.
        indices: Which examples, as a slice.
        batch: Examples per transaction.
        add: Allow a run with other settings beside those in the store.
        executor: Who computes the batches; the numbers do not depend on it. This process alone writes to the store.

    Returns: All rows of this run, those of earlier sessions included.

    Raises:
        InputError: the store holds other settings, or an input is wrong. Rows written so far stay.
        UnsupportedModule: the method has no rule for a layer.
    """
    x, y, ids = select(data, indices)
    work = _Verification(method, Portable(model))
    settings = _settings(method, model, data, names, work.device)
    return _record(store, settings, work, x.__getitem__, y, ids, batch=batch, add=add, executor=executor)


@dataclass(frozen=True, slots=True, eq=False)
class _Verification:
    """Verify a batch."""

    method: Method
    network: Portable

    @property
    def device(self) -> torch.device:
        return self.network.device

    def __call__(self, x: Tensor) -> Certificate:
        return self.method(self.network.model, x.to(self.device))


def _settings(
    method: Method, model: nn.Module, data: Data, names: tuple[str, str], device: torch.device
) -> dict[str, Any]:
    return {
        "model": names[0],
        "model_sha256": model_digest(model),
        "data": names[1],
        "data_sha256": tensor_digest(data.x, data.y, data.id),
        "method": repr(method),
        "torch": torch.__version__,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def _record(
    store: str | Path,
    settings: dict[str, Any],
    work: Work,
    item: Callable[[list[int]], Any],
    y: Tensor,
    ids: list[int],
    *,
    batch: int,
    add: bool,
    executor: Executor,
) -> Results:
    """Certify what has no row yet, a batch of positions at a time, each one transaction."""
    if batch < 1:
        raise InputError(f"need batch >= 1; got {batch}")
    with Store(store, create=True) as file:
        record = file.open_run(settings, {**environment(work.device), "executor": repr(executor)}, add=add)
        done = record.done()
        pending = [i for i, e in enumerate(ids) if e not in done]
        batches = [pending[i : i + batch] for i in range(0, len(pending), batch)]
        if batches:
            label = f"certify {settings['data']}"
            with progress(label, total=len(ids), done=len(ids) - len(pending)) as bar, executor(work) as results:
                for number, certificate, seconds in results(map(item, batches)):
                    rows = batches[number]
                    record.append(certificate, [ids[i] for i in rows], y[rows].tolist(), seconds)
                    bar.advance(len(rows))
        return next(r for r in file.results() if r.settings == settings)
