"""The hot loop: Monte-Carlo votes of a base classifier under noise.

Counts are a function of (classifier, execution, noise, stream, draws, thread count) alone. Noise comes in blocks of
BLOCK draws, each from a stream named by example and block; every forward pass has the same shape, `Execution.rows`, so
that the same kernels sum in the same order however the work is batched, split or resumed. What fixed shapes cannot
promise: equal counts between devices, between `rows`, or between versions of the kernels, where logits differ in the
last bits and a near-tie may fall the other way.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from certify.errors import InputError
from certify.noise import Noise
from certify.rng import Stream
from certify.threat import Box, leaves

BLOCK = 128
"""Draws per stream. A change moves every committed count."""

Precision = Literal["float32", "bfloat16", "float16"]
_DTYPE: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True)
class Execution:
    """How the base classifier is evaluated.

    Args:
        precision: The arithmetic of the classifier. Noise is always drawn and added in float32 and then rounded, so the
            subject is the rounded classifier, an ordinary function of the noisy input, and the theorem applies to it.
        channels_last: Use the channels-last memory layout for images; often faster.
        compiled: Use torch.compile; where it fails, evaluation is eager and `BaseClassifier.execution` says so.
        rows: Noisy copies per forward pass, a multiple of BLOCK. A few hundred stay in a CPU's cache; a GPU wants
            thousands.

    Raises:
        InputError: an unknown precision, or `rows` not a positive multiple of BLOCK.
    """

    precision: Precision = "float32"
    channels_last: bool = True
    compiled: bool = False
    rows: int = 2 * BLOCK

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise InputError(f"need a precision among {', '.join(get_args(Precision))}; got {self.precision!r}")
        if self.rows < BLOCK or self.rows % BLOCK:
            raise InputError(f"need rows a positive multiple of {BLOCK}; got {self.rows!r}")


class BaseClassifier:
    """A classifier ready to vote: checked, laid out and perhaps compiled once, then called on batches of one shape.

    The caller's model is never changed; where precision or layout ask for it, this holds a converted copy.

    Args:
        model: Maps (n, ...) inputs to (n, classes) logits; in evaluation mode.
        example: One input, (1, ...): its shape, and the compiler's warm-up.
        execution: How to evaluate.

    Raises:
        InputError: the model is in training mode, does not take such an input, or its logits are not (n, classes) with
            at least two classes.
    """

    def __init__(self, model: nn.Module, example: Tensor, execution: Execution | None = None) -> None:
        execution = execution or Execution()
        check_model(model)
        self.device = device_of(model, example.device)
        self.shape = tuple(example.shape[1:])
        if execution.precision != "float32" or execution.channels_last:
            model = copy.deepcopy(model)
            if execution.precision != "float32":
                model = model.to(_DTYPE[execution.precision])
            if execution.channels_last:
                model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.model = model
        self.execution = execution
        floats = [t.dtype for t in model.parameters() if t.is_floating_point()]
        self.dtype = floats[0] if floats else _DTYPE[execution.precision]  # a float64 model votes in float64
        self._forward = self._build(example)
        try:
            logits = self.logits(self._probe(example))
        except RuntimeError as error:
            raise InputError(f"the model does not take inputs of shape {self.shape}: {error}") from error
        self.classes = self._check_logits(logits)

    def _probe(self, example: Tensor) -> Tensor:
        return example[:1].to(self.device).expand(self.execution.rows, *self.shape).contiguous()

    def _build(self, example: Tensor) -> Callable[[Tensor], Tensor]:
        dtype = self.dtype
        images = self.execution.channels_last and len(self.shape) == 3
        layout = torch.channels_last if images else torch.contiguous_format
        model = self.model

        def forward(noisy: Tensor) -> Tensor:
            return model(noisy.to(dtype=dtype, memory_format=layout))

        if self.execution.compiled:
            # torch.compile keeps at most eight versions per code object and then quietly runs eagerly: a copy is new.
            fresh = FunctionType(
                forward.__code__.replace(), forward.__globals__, "forward", closure=forward.__closure__
            )
            try:
                compiled = torch.compile(fresh, dynamic=False, fullgraph=True)
                with torch.inference_mode():
                    compiled(self._probe(example))
            except Exception:  # no compiler, unsupported platform: speed is lost, nothing else
                self.execution = replace(self.execution, compiled=False)
            else:
                return compiled
        return forward

    def _check_logits(self, logits: Tensor) -> int:
        rows = self.execution.rows
        if logits.ndim != 2 or logits.shape[0] != rows or logits.shape[1] < 2:
            raise InputError(
                f"need logits of shape ({rows}, classes >= 2) for {rows} inputs; got {tuple(logits.shape)}"
            )
        return logits.shape[1]

    @classmethod
    def of(cls, model: "nn.Module | BaseClassifier", x: Tensor) -> Self:
        """`model` itself where it is ready already, else a default one for it."""
        return model if isinstance(model, cls) else cls(model, x[:1])  # pyright: ignore[reportArgumentType]

    @property
    def name(self) -> str:
        """How the subject of a certificate names it: "f", or "f in bfloat16"."""
        return "f" if self.dtype == torch.float32 else f"f in {str(self.dtype).removeprefix('torch.')}"

    @torch.inference_mode()
    def logits(self, inputs: Tensor) -> Tensor:
        """Logits (rows, classes) of exactly `rows` inputs."""
        return self._forward(inputs)


def device_of(model: nn.Module, otherwise: torch.device = torch.device("cpu")) -> torch.device:
    """Where a model's parameters and buffers are; `otherwise` for one that has none."""
    return next((t.device for t in (*model.parameters(), *model.buffers())), otherwise)


def check_model(model: nn.Module) -> None:
    """Refuse a model in training mode.

    Raises:
        InputError: the rule is broken.
    """
    training = [name or type(m).__name__ for name, m in model.named_modules() if m.training]
    if training:
        raise InputError(f"need a model in evaluation mode, call model.eval(); in training mode: {training[0]}")


def check_inputs(x: Tensor, box: Box) -> None:
    """Refuse inputs that a certificate could not speak of.

    Raises:
        InputError: not a float (n >= 1, ...) tensor, not finite, or outside the box.
    """
    if x.ndim < 2 or x.shape[0] < 1 or not x.is_floating_point():
        raise InputError(f"need x of shape (n >= 1, ...) in floating point; got {tuple(x.shape)}, {x.dtype}")
    if not bool(torch.isfinite(x).all()):
        raise InputError("need finite inputs; got NaN or infinity")
    if box is not None and leaves(x, box):
        raise InputError(
            f"need inputs in [{box[0]:g}, {box[1]:g}]; got [{float(x.min()):g}, {float(x.max()):g}] "
            "(normalise inside the model, or pass box=None for data that is not pixels)"
        )


@dataclass(frozen=True, slots=True)
class _Block:
    """Part of one forward pass: `size` draws for one example, from its block `number`, at `row`."""

    example: int
    number: int
    size: int
    row: int


def _pack(draws: Sequence[int], rows: int) -> Iterator[list[_Block]]:
    """Lay the blocks of all examples into forward passes of `rows` rows, in order, none straddling two."""
    batch: list[_Block] = []
    row = 0
    for example, total in enumerate(draws):
        for number in range(-(-total // BLOCK)):
            size = min(BLOCK, total - number * BLOCK)
            if row + size > rows:
                yield batch
                batch, row = [], 0
            batch.append(_Block(example, number, size, row))
            row += size
    if batch:
        yield batch


def count_votes(
    base: BaseClassifier, x: Tensor, noise: Noise, streams: Sequence[Stream], draws: int | Sequence[int]
) -> Tensor:
    """Count the base classifier's votes under noise; memory does not depend on the number of draws.

    Args:
        base: The classifier.
        x: (n, ...) inputs.
        noise: Applied to the inputs, before whatever normalisation the classifier does, and never clipped.
        streams: One per example; equal streams give equal noise.
        draws: Votes per example, one number or one for each; >= 1.

    Returns: (n, classes) int64 counts on the CPU; row sums are `draws`.

    Raises:
        InputError: a shape does not fit, `draws` is not positive, or a logit is NaN or infinite.
    """
    n = x.shape[0]
    sizes = [draws] * n if isinstance(draws, int) else list(draws)
    if len(streams) != n or len(sizes) != n or min(sizes) < 1:
        raise InputError(f"need one stream and draws >= 1 for each of {n} inputs; got {len(streams)}, {sizes[:3]} ...")
    if tuple(x.shape[1:]) != base.shape:
        raise InputError(f"need inputs of shape {base.shape}; got {tuple(x.shape[1:])}")
    x = x.to(base.device, torch.float32)

    def write(example: int, block: int, out: Tensor) -> None:
        noise.perturb(out, x[example], streams[example].child(block).generator(base.device))

    return tally(base, sizes, write)


def tally(base: BaseClassifier, sizes: Sequence[int], write: Callable[[int, int, Tensor], None]) -> Tensor:
    """Classify `sizes[i]` copies of each example i and count the labels.

    Args:
        base: The classifier.
        sizes: Copies per example; >= 1.
        write: write(example, block, out) overwrites `out` with that example's copies number block * BLOCK and on.

    Returns: (n, classes) int64 counts on the CPU.

    Raises:
        InputError: a logit is NaN or infinite.
    """
    n, rows, classes, device = len(sizes), base.execution.rows, base.classes, base.device
    buffer = torch.zeros(rows, *base.shape, device=device)
    counts = torch.zeros((n + 1) * classes, dtype=torch.int64, device=device)  # row n takes the votes of padding
    finite = torch.ones((), dtype=torch.bool, device=device)
    with torch.inference_mode():
        for batch in _pack(sizes, rows):
            owner = torch.full((rows,), n, dtype=torch.int64)
            for block in batch:
                part = slice(block.row, block.row + block.size)
                owner[part] = block.example
                write(block.example, block.number, buffer[part])
            owner = owner.to(device)
            logits = base.logits(buffer)
            finite &= torch.isfinite(logits).all(1).logical_or(owner == n).all()
            counts += torch.bincount(owner * classes + logits.argmax(1), minlength=counts.numel())
    if not bool(finite):
        raise InputError("the model gave NaN or infinite logits under noise; a vote needs finite ones")
    return counts.view(n + 1, classes)[:n].cpu()


def label_streams(rng: Stream | Sequence[Stream], count: int) -> list[Stream]:
    """One stream per example: the given ones, or children of one stream named by position.

    Raises:
        InputError: the number of streams is not the number of examples.
    """
    streams = [rng.child(i) for i in range(count)] if isinstance(rng, Stream) else list(rng)
    if len(streams) != count:
        raise InputError(f"need one stream per example, {count}; got {len(streams)}")
    return streams


def leaders(counts: Tensor) -> tuple[Tensor, Tensor]:
    """The two most-voted classes per row and their counts, (n, 2) each; ties go to the lower class."""
    order = torch.sort(counts, dim=1, descending=True, stable=True)
    return order.indices[:, :2], order.values[:, :2]
