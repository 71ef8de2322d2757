"""Who works through the batches of a campaign: this process here, the workers of a cluster in `ray_executor`."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from certify.voting import device_of


class Work(Protocol):
    """What is done to each item. It pickles, and so do its items and results."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def __call__(self, item: Any, /) -> Any:
        """The result: a function of the item alone, whoever worked on what before."""
        ...


Results = Callable[[Iterable[Any]], Iterator[tuple[int, Any, float]]]
"""From items to each one's place, result and seconds of wall clock, in the order in which they are done."""


class Executor(Protocol):
    """`with executor(work) as results:` holds whatever it takes to work for as long as the block lasts."""

    def __call__(self, work: Work) -> AbstractContextManager[Results]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Serial:
    """One item after the other, in this process."""

    @contextmanager
    def __call__(self, work: Work) -> Iterator[Results]:
        """See `Executor`."""

        def results(items: Iterable[Any]) -> Iterator[tuple[int, Any, float]]:
            for number, item in enumerate(items):
                yield number, *timed(work, item)

        yield results


def timed(work: Work, item: Any) -> tuple[Any, float]:
    """The result, and the seconds that it took."""
    started = time.perf_counter()
    result = work(item)
    return result, time.perf_counter() - started


@dataclass(frozen=True, slots=True, eq=False)
class Portable:
    """A network that pickles without its device: it travels through memory, and arrives on a device of that type."""

    model: nn.Module

    @property
    def device(self) -> torch.device:
        """Where its parameters and buffers are."""
        return device_of(self.model)

    def __reduce__(self) -> tuple[Callable[..., "Portable"], tuple[nn.Module, str]]:
        return _arrive, (copy.deepcopy(self.model).cpu(), self.device.type)


def _arrive(model: nn.Module, device: str) -> Portable:
    return Portable(model.to(device))
