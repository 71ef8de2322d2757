"""What training costs: passes through the network, seconds, and memory, side by side in one run."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from certify import InputError, Stream
from certify.campaign.weights import load_weights
from paper_repro.data import Data
from paper_repro.training.fit import Diverged, Method, initialise
from paper_repro.training.optimisation import Training
from paper_repro.training.state import is_finite
from paper_repro.training.step import Step


@dataclass(slots=True)
class Passes:
    """Inputs that went through a network forwards, and gradients that came back through it."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def counting(model: nn.Module) -> Iterator[Passes]:
    """Count the rows that pass through a network while the block runs.

    A backward pass counts where a gradient reaches the logits; where `torch.autograd.grad` takes a batch of gradients
    at once, each of them counts. One through the graph of another gradient counts too, as far as it does: its second
    half, through the derivative's own graph, has no logits to be seen at.
    """
    passes, at_once, grad = Passes(), 1, torch.autograd.grad

    def forward(_module: nn.Module, _inputs: Any, logits: Tensor) -> None:
        passes.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(backward)

    def backward(gradient: Tensor) -> None:
        passes.backwards += at_once * len(gradient)

    def batched(outputs: Any, inputs: Any, grad_outputs: Any = None, **options: Any) -> Any:
        # A hook sees a batch of gradients as if it were one.
        nonlocal at_once
        if options.get("is_grads_batched"):
            at_once = len(grad_outputs if isinstance(grad_outputs, Tensor) else grad_outputs[0])
        try:
            return grad(outputs, inputs, grad_outputs, **options)
        finally:
            at_once = 1

    handle = model.register_forward_hook(forward)
    torch.autograd.grad = batched
    try:
        yield passes
    finally:
        torch.autograd.grad = grad
        handle.remove()


@dataclass(frozen=True, slots=True)
class Cost:
    """What a method costs.

    Attributes:
        forwards: Passes forwards per training example: those of the median update.
        backwards: Passes backwards, likewise.
        seconds: Per epoch of updates: the median one of the same updates, times the updates of an epoch.
        memory: Peak bytes of tensors that one update allocates, weights and inputs not included.
    """

    forwards: float
    backwards: float
    seconds: float
    memory: int


@dataclass(slots=True)
class _Trainee:
    """A method at work on a network of its own."""

    method: Method
    model: nn.Module
    optimizer: torch.optim.Optimizer
    memory: dict[str, Tensor] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    passes: list[Passes] = field(default_factory=list)

    def update(self, x: Tensor, y: Tensor, number: int, total: int, per_epoch: int) -> None:
        rng = Stream(0).child("update", number)
        self.method.update(self.model, self.optimizer, x, y, step=Step(rng, number, total, per_epoch, self.memory))


def measure(
    methods: Mapping[str, Method],
    make_model: Callable[[], nn.Module],
    data: Data,
    training: Training,
    *,
    updates: int = 20,
    device: torch.device | str = "cpu",
    start: Path | None = None,
) -> dict[str, Cost]:
    """Let methods take turns, update by update on the same batches, so that a busy machine slows all of them alike.

    Every network starts from the same weights. Two updates each come first and do not count; the last of them is the
    one whose memory is taken. Seconds are those of updates: what a method watches after an epoch is not in them.

    Args:
        methods: By the names of the result.
        make_model: The network.
        data: At least one batch; the epoch whose seconds are told is one over all of it.
        training: Batch size, optimiser, and the epochs that ramps refer to.
        updates: Of each method, after those two.
        device: Where to compute.
        start: Weights of every network; None draws them.

    Raises:
        InputError: fewer examples than one batch, or no updates.
        Diverged: a weight became NaN or infinite: such updates cost what no training does.
    """
    if len(data) < training.batch_size or updates < 1:
        raise InputError(f"need a batch of {training.batch_size} examples and an update; got {len(data)}, {updates}")
    trainees = {name: _trainee(method, make_model().to(device), training, start) for name, method in methods.items()}
    per_epoch = math.ceil(len(data) / training.batch_size)
    memory = {}
    for number in range(updates + 2):
        first = number % (len(data) // training.batch_size) * training.batch_size
        x, y = (t[first : first + training.batch_size].to(device) for t in (data.x, data.y))
        for name, trainee in trainees.items():

            def update(trainee: _Trainee = trainee, number: int = number, x: Tensor = x, y: Tensor = y) -> None:
                trainee.update(x, y, number, training.epochs * per_epoch, per_epoch)

            if number == 1:
                memory[name] = _peak_memory(update, torch.device(device))
            elif number == 0:
                update()
            else:
                with counting(trainee.model) as passes:
                    trainee.seconds.append(_seconds(update, torch.device(device)))
                trainee.passes.append(passes)
            if not is_finite(trainee.model):
                raise Diverged(f"a weight is not finite after update {number} of {name}")
    return {
        name: Cost(
            forwards=median(p.forwards for p in trainee.passes) / training.batch_size,
            backwards=median(p.backwards for p in trainee.passes) / training.batch_size,
            seconds=median(trainee.seconds) * per_epoch,
            memory=memory[name],
        )
        for name, trainee in trainees.items()
    }


def _trainee(method: Method, model: nn.Module, training: Training, start: Path | None) -> _Trainee:
    if start is None:
        initialise(model, 0)
    else:
        load_weights(model, start)
    model.train()
    return _Trainee(method, model, training.make_optimizer(model))


def _seconds(update: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    update()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _peak_memory(update: Callable[[], None], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        update()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        update()
    assert profiler.profiler is not None
    # The profiler's own timeline of allocations: its tables only have sums over an operation, which hide the peak.
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def table(costs: Mapping[str, Cost], reference: str) -> list[dict[str, str | float]]:
    """Rows of a table: each method's cost, and in multiples of the one named `reference`.

    Raises:
        InputError: there is no such method.
    """
    if reference not in costs:
        raise InputError(f"need a reference among {', '.join(costs)}; got {reference!r}")
    plain = costs[reference]
    return [
        {
            "method": name,
            "forwards": cost.forwards,
            "backwards": cost.backwards,
            "passes / plain": (cost.forwards + cost.backwards) / (plain.forwards + plain.backwards),
            "s / epoch": cost.seconds,
            "time / plain": cost.seconds / plain.seconds,
            "peak MiB": cost.memory / 2**20,
            "memory / plain": cost.memory / plain.memory,
        }
        for name, cost in costs.items()
    ]
