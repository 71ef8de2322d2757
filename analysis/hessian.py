"""Hessian-vector products of any loss, over any parameters and a whole data set."""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from certify.errors import InputError, check_count

Loss = Callable[[Tensor, Tensor], Tensor]
"""From the model's output for a batch, and the batch's y, to one loss per example (n,)."""

Choice = Collection[str] | Callable[[str], bool] | None
"""Parameters by name, by a rule on names, or all."""


def cross_entropies(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each example, (n,)."""
    return cross_entropy(logits, y, reduction="none")


class Hessian:
    """The Hessian of theta -> mean_i loss(model_theta(x_i), y_i) as a symmetric linear operator.

    It is taken at the parameters that the model has when this is made, over the examples as they are: adversarial x
    give the Hessian with the perturbation held fixed. The mean is over examples, so the cut into batches is no part of
    the result; batches add up in float64 and always in the same order. Where the network has kinks, as with ReLU, this
    is the Hessian of the piece that theta lies in.

    A loss of several forward passes is the loss of a module that makes them all: `loss` gets its output.

    Args:
        model: In evaluation mode. It is never changed, and neither are its parameters' gradients.
        x: (n, ...) inputs on the model's device.
        y: (n, ...) what the loss compares with.
        loss: (output, y) -> (n,), twice differentiable.
        parameters: Which parameters are varied; the others are held fixed.
        batch: Examples differentiated together. Some hundreds are fastest on a CPU, whose caches then hold them.
        dtype: torch.float32 or torch.float64 to compute in; None for the parameters' own.
        keep_graphs: How many batches keep what the first product worked out for the next ones: a product costs them
            about two gradients in place of three, and memory of some ten times their activations.

    Attributes:
        names: Of the parameters varied, in the model's order; vectors hold their entries in that order, row by row.
        products: Hessian-vector products made so far.

    Raises:
        InputError: training mode, nothing to vary or to average, unknown names, another dtype, shapes that do not fit.

    Source: Pearlmutter (1994).
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        loss: Loss = cross_entropies,
        parameters: Choice = None,
        batch: int = 250,
        dtype: torch.dtype | None = None,
        keep_graphs: int = 4,
    ) -> None:
        if any(m.training for m in model.modules()):
            raise InputError(
                "need a model in evaluation mode, where batch normalisation uses its stored statistics and no "
                "example's loss depends on its batch; call model.eval()"
            )
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
            raise InputError(f"need one y per x, and at least one; got {tuple(x.shape)} and {tuple(y.shape)}")
        check_count("batch", batch)
        self.names = _chosen(model, parameters)
        named = dict(model.named_parameters())
        self.dtype = dtype or named[self.names[0]].dtype
        if self.dtype not in (torch.float32, torch.float64):
            raise InputError(f"need dtype torch.float32 or torch.float64; got {self.dtype}")
        self.device = named[self.names[0]].device
        # A copy: the operator stays what it is when the caller trains on.
        state = {**named, **dict(model.named_buffers())}
        self._state = {k: self._cast(v.detach()).clone() for k, v in state.items()}
        self._theta = [self._state[k].requires_grad_() for k in self.names]
        self._model, self._loss = model, loss
        self._batches = list(zip(self._cast(x.detach()).split(batch), self._cast(y.detach()).split(batch), strict=True))
        self._n = len(x)
        self._kept: dict[int, Sequence[Tensor]] = {}
        self._keep = keep_graphs
        self.products = 0

    def _cast(self, t: Tensor) -> Tensor:
        return t.to(self.dtype) if t.is_floating_point() else t

    def __repr__(self) -> str:
        loss = getattr(self._loss, "__qualname__", repr(self._loss))
        return f"Hessian(n={self._n}, parameters={self.shape[0]}, loss={loss}, dtype={self.dtype})"

    @property
    def shape(self) -> tuple[int, int]:
        """(p, p), p being the number of parameter entries varied."""
        p = sum(t.numel() for t in self._theta)
        return p, p

    def matvec(self, v: Tensor) -> Tensor:
        """H v for a vector (p,), as float64.

        Raises:
            InputError: the shape is wrong, or what `gradient` refuses.
        """
        if v.shape != self.shape[:1]:
            raise InputError(f"need a vector of {self.shape[0]} entries; got {tuple(v.shape)}")
        return self.matmat(v[:, None])[:, 0]

    def matmat(self, v: Tensor) -> Tensor:
        """H V for the columns of V (p, k), as float64 (p, k); every batch is differentiated once for all columns.

        Raises:
            InputError: the shape is wrong, or what `gradient` refuses.
        """
        total = self.sums(v)
        self.products += v.shape[1]
        return total / self._n

    def sums(self, v: Tensor) -> Tensor:
        """The sum over examples of H_i V, of which `matmat` is the mean: what adds up over parts of a data set.

        Raises:
            InputError: as `matmat`.
        """
        if v.ndim != 2 or v.shape[0] != self.shape[0]:
            raise InputError(f"need a matrix of {self.shape[0]} rows; got {tuple(v.shape)}")
        columns = [list(self.as_parameters(column).values()) for column in v.T]
        total = torch.zeros(v.shape[::-1], dtype=torch.float64, device=self.device)
        for gradients in self._graphs():
            for row, column in zip(total, columns, strict=True):
                row += self._second(gradients, column)
        return self._finite(total).T

    def gradient(self) -> Tensor:
        """The gradient of the mean loss, (p,) float64.

        Raises:
            InputError: the loss is not (n,), is not finite, or does not depend on a parameter.
        """
        total = torch.zeros(self.shape[0], dtype=torch.float64, device=self.device)
        for x, y in self._batches:
            total += _flat(self._first(x, y, create_graph=False))
        return self._finite(total) / self._n

    def as_parameters(self, v: Tensor) -> dict[str, Tensor]:
        """The entries of a vector (p,) by parameter, in the parameters' shapes and the operator's dtype."""
        # On how a vector lies in memory the last bits of a product may depend.
        parts = v.to(self.device, self.dtype).contiguous().split([t.numel() for t in self._theta])
        return {k: part.view_as(t) for k, part, t in zip(self.names, parts, self._theta, strict=True)}

    def _graphs(self) -> Iterator[Sequence[Tensor]]:
        """The gradient of each batch's summed loss, itself differentiable."""
        for number, (x, y) in enumerate(self._batches):
            if number in self._kept:
                yield self._kept[number]
                continue
            gradients = self._first(x, y, create_graph=True)
            if number < self._keep:
                self._kept[number] = gradients
            yield gradients

    def _first(self, x: Tensor, y: Tensor, *, create_graph: bool) -> Sequence[Tensor]:
        with torch.enable_grad():
            losses = self._loss(functional_call(self._model, self._state, (x,)), y)
            if losses.shape != x.shape[:1]:
                raise InputError(f"need a loss per example, {(len(x),)}; got {tuple(losses.shape)}")
            if not bool(torch.isfinite(losses).all()):
                raise InputError("the loss is NaN or infinite on some example; it has no curvature there")
            if not losses.requires_grad:
                raise InputError("the loss does not depend on the parameters through differentiable operations")
            gradients = torch.autograd.grad(losses.sum(), self._theta, create_graph=create_graph, allow_unused=True)
        missing = [name for name, g in zip(self.names, gradients, strict=True) if g is None]
        if missing:
            raise InputError(f"the loss does not depend on {', '.join(missing)}; leave such parameters out")
        return gradients

    def _second(self, gradients: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
        # A gradient without a graph is constant in theta: its row of the Hessian is zero.
        curved = [(g, v) for g, v in zip(gradients, direction, strict=True) if g.requires_grad]
        if not curved:
            return torch.zeros(self.shape[0], dtype=torch.float64, device=self.device)
        outputs, vectors = zip(*curved, strict=True)
        # The graph goes when its last reference does; until then the next direction uses it.
        return _flat(torch.autograd.grad(outputs, self._theta, vectors, retain_graph=True, materialize_grads=True))

    @staticmethod
    def _finite(total: Tensor) -> Tensor:
        if not bool(torch.isfinite(total).all()):
            raise InputError("a derivative of the loss is NaN or infinite: the loss or the network is not smooth here")
        return total


def _chosen(model: nn.Module, parameters: Choice) -> tuple[str, ...]:
    known = [k for k, p in model.named_parameters() if p.is_floating_point()]
    if callable(parameters):
        names = [k for k in known if parameters(k)]
    else:
        wanted = known if parameters is None else parameters
        if isinstance(wanted, str) or not set(wanted) <= set(known):
            raise InputError(f"need parameters among {', '.join(known)}; got {parameters!r}")
        names = [k for k in known if k in set(wanted)]
    if not names:
        raise InputError(f"need at least one parameter to vary among {', '.join(known) or 'none'}; got none")
    return tuple(names)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten().double() for t in tensors])
