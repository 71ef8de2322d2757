"""Hessian-vector products whose batches are differentiated by different processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analysis.hessian import Choice, Hessian, Loss, cross_entropies
from certify.campaign.executor import Executor, Portable, Results
from certify.errors import InputError


@contextmanager
def sharded_hessian(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    executor: Executor,
    loss: Loss = cross_entropies,
    parameters: Choice = None,
    batch: int = 250,
    dtype: torch.dtype | None = None,
) -> Iterator["ShardedHessian"]:
    """`Hessian`, with every batch a piece of work of its own.

    Batches add up in float64 and in their order, whoever differentiates them and whenever it is done: products are
    those of `Hessian` with the same batches, bit for bit, whatever the executor and its number of workers.

    What a batch costs beside its product: the vectors travel to the worker, their products travel back. No graph is
    kept between products, so each costs about three gradients. Every worker holds all examples.

    Args:
        model: As for `Hessian`; each worker has a copy, taken when the block begins.
        x: As for `Hessian`.
        y: As for `Hessian`.
        executor: Who differentiates.
        loss: As for `Hessian`; it pickles.
        parameters: As for `Hessian`; it pickles.
        batch: Examples of a piece of work.
        dtype: As for `Hessian`.

    Yields: The operator, for as long as the block lasts.

    Raises:
        InputError: what `Hessian` refuses.
    """
    options = {"loss": loss, "parameters": parameters, "batch": batch, "dtype": dtype, "keep_graphs": 0}
    whole = Hessian(model, x, y, **options)
    parts = zip(x.detach().cpu().split(batch), y.detach().cpu().split(batch), strict=True)
    batches = tuple((a.clone(), b.clone()) for a, b in parts)  # a view would pickle all that it is a view of
    with executor(_Products(Portable(model), batches, options)) as results:
        yield ShardedHessian(whole, len(batches), len(x), results)


@dataclass(frozen=True, slots=True, eq=False)
class _Products:
    """The sum over one batch of the products with the columns of a matrix."""

    network: Portable
    batches: Sequence[tuple[Tensor, Tensor]]
    options: dict[str, Any]

    @property
    def device(self) -> torch.device:
        return self.network.device

    def __call__(self, item: tuple[int, Tensor]) -> Tensor:
        number, v = item
        x, y = (t.to(self.device) for t in self.batches[number])
        return Hessian(self.network.model, x, y, **self.options).sums(v).cpu()


class ShardedHessian:
    """An operator such as `Hessian`; of `sharded_hessian`.

    Attributes:
        shape: (p, p).
        dtype: What products are worked out in; they are returned as float64.
        device: Where they are returned.
        products: Hessian-vector products made so far.
    """

    def __init__(self, whole: Hessian, batches: int, examples: int, results: Results) -> None:
        self.shape, self.dtype, self.device = whole.shape, whole.dtype, whole.device
        self.products = 0
        self._batches, self._examples, self._results = batches, examples, results

    def matvec(self, v: Tensor) -> Tensor:
        """H v for a vector (p,), as float64.

        Raises:
            InputError: what `Hessian.matvec` refuses.
        """
        if v.shape != self.shape[:1]:
            raise InputError(f"need a vector of {self.shape[0]} entries; got {tuple(v.shape)}")
        return self.matmat(v[:, None])[:, 0]

    def matmat(self, v: Tensor) -> Tensor:
        """H V for the columns of V (p, k), as float64 (p, k).

        Raises:
            InputError: what `Hessian.matmat` refuses.
        """
        v = v.detach().to("cpu", self.dtype).clone()
        total = torch.zeros(v.shape, dtype=torch.float64)
        early: dict[int, Tensor] = {}
        following = 0
        for number, part, _ in self._results((i, v) for i in range(self._batches)):
            early[number] = part
            while following in early:
                total += early.pop(following)
                following += 1
        self.products += v.shape[1]
        return (total / self._examples).to(self.device)
