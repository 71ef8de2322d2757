"""Networks from ONNX files, as sequences of the layers that verification has rules for.

onnx2torch converts each operation; the chain of them is read off the graph that it makes. Whatever comes of it is held
against the file itself, evaluated by onnx's own reference implementation.
"""

import copy
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.passes.shape_prop import ShapeProp

from certify.campaign.onnx_layers import LAYERS, chain
from certify.campaign.weights import load_weights, resolve
from certify.errors import InputError, UnsupportedModule
from certify.rng import Stream

INSTALL = "ONNX files need onnx and onnx2torch: pip install 'robust-radius[interop]'"

_SHAPES = ("Shape", "Gather", "Unsqueeze", "Concat", "Slice", "Cast", "Constant")
"""What else exporters use, to compute the shape for a Reshape."""

_OPSET, _SAME_UNTIL = 18, 28
"""onnx2torch's newest operator set. From it to the other, the operations here changed in the types they take alone, or
got an attribute, which the checker refuses as one that the older set does not have."""


def read_onnx(path: str | Path, shape: Sequence[int] | None = None) -> nn.Sequential:
    """Read a network.

    Nothing in the file is executed, and data outside of it are read from its own folder alone. A file made for batches
    of one example serves for any.

    Args:
        path: A float32 network with one input (n, ...) and one output (n, classes). Sums with constants per channel
            and products with positive ones become a `Normalize`.
        shape: Of one input, without the batch, as the data have it; None for whatever the file has.

    Returns: A sequence of layers with a rule, in evaluation mode. On random inputs it was found to compute what the
        file does, to 1e-4 of the largest logit; a product's factor is kept as its inverse, rounded to float32.

    Raises:
        InputError: onnx or onnx2torch is not installed; the file is missing, damaged, refers to data outside its
            folder, or is not about such inputs and outputs.
        UnsupportedModule: an operation has no layer, or the graph is not a chain with nested skips.
    """
    proto = _load(Path(path))
    batch, found = _input(proto)
    if shape is not None and tuple(shape) != found:
        raise InputError(f"{path} takes inputs of shape {found}; need {tuple(shape)}")
    model = _convert(proto, torch.zeros(batch or 2, *found))
    _compare(proto, model, batch or 2, found)
    return model


def input_shape(path: str | Path) -> tuple[int, ...]:
    """The shape of one input of a network, without the batch.

    Raises:
        InputError: as for `read_onnx`.
    """
    return _input(_load(Path(path)))[1]


def load_network(
    model: str | None, weights: Path | None, onnx: Path | None, shape: Sequence[int]
) -> tuple[nn.Module, str]:
    """The network that a command line names in one of two ways, and what to call it in the record.

    Args:
        model: package.module:callable, with `weights`; or None.
        weights: A safetensors file; or None.
        onnx: A file for `read_onnx`, by itself; or None.
        shape: Of one input.

    Raises:
        InputError: neither or both are named; as `load_weights` and `read_onnx` do.
        UnsupportedModule: as `read_onnx` does.
    """
    if onnx is not None and model is None and weights is None:
        return read_onnx(onnx, shape), onnx.name
    if onnx is None and model is not None and weights is not None:
        return load_weights(resolve(model)(), weights), model
    raise InputError("need --model and --weights, or --onnx alone")


def _package(name: str) -> Any:
    try:
        if name == "onnx2torch" and name not in sys.modules:
            with _torchvision():
                return importlib.import_module(name)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(f"{INSTALL} ({error})") from error


@contextmanager
def _torchvision() -> Iterator[None]:
    """A stand-in for torchvision while onnx2torch is imported, where the package is missing or does not load.

    onnx2torch imports it for two operations of object detectors, which no classifier has.
    """
    before = set(sys.modules)
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError):  # one built for another torch raises any of these
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "torchvision":
                del sys.modules[name]
    else:
        yield
        return
    package, operations = ModuleType("torchvision"), ModuleType("torchvision.ops")
    package.__dict__["ops"], operations.__dict__["roi_align"] = operations, None
    stand_ins = {"torchvision": package, "torchvision.ops": operations}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _load(path: Path) -> Any:
    """The checked content of a file.

    Raises:
        InputError: the message says what is wrong.
    """
    onnx = _package("onnx")
    if not path.is_file():
        raise InputError(f"need an ONNX file; no file at {path}")
    damaged = importlib.import_module("google.protobuf.message").DecodeError
    wrong = (damaged, onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, OSError)
    try:
        # onnx refuses external data by an absolute path, outside the file's own folder, or behind a link.
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto, full_check=True)
    except wrong as error:
        raise InputError(f"{path} is not a usable ONNX file: {_first_line(error)}") from error
    return proto


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _input(proto: Any) -> tuple[int | None, tuple[int, ...]]:
    """The batch size, or None where it is free, and the shape of one input.

    Raises:
        InputError: the network does not map one batch of float32 inputs to one output.
    """
    initial = {value.name for value in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in initial]
    if len(inputs) != 1 or len(proto.graph.output) != 1:
        raise InputError(f"need one input and one output; got {len(inputs)} and {len(proto.graph.output)}")
    tensor, types = inputs[0].type.tensor_type, _package("onnx").TensorProto
    if tensor.elem_type != types.FLOAT:
        raise InputError(f"need a network of float32 inputs; got {types.DataType.Name(tensor.elem_type)}")
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    shape = tuple(s for s in sizes[1:] if s)
    if not shape or len(shape) != len(sizes) - 1 or sizes[0] == 0:
        raise InputError(f"need inputs (n, ...) of a known shape, where n alone may be free; got {tuple(sizes)}")
    return sizes[0], shape


def _prepared(proto: Any) -> Any:
    """A copy that onnx2torch takes: constants are initialisers, and the operator set is one that it knows.

    Raises:
        UnsupportedModule: an operation has no layer, or an attribute that it got later.
    """
    onnx, proto = _package("onnx"), copy.deepcopy(proto)
    known, nodes = {value.name: value for value in proto.graph.initializer}, []
    for node in proto.graph.node:
        if node.domain or node.op_type not in (*LAYERS, *_SHAPES):
            raise UnsupportedModule(f"no layer for the ONNX operation {node.op_type}; need {', '.join(LAYERS)}")
        if node.op_type == "Reshape" and len(node.attribute):
            del node.attribute[:]  # allowzero, which onnx2torch refuses, has a meaning for empty tensors alone
        constant = known.get(node.input[0]) if node.op_type == "Identity" else None
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constant = node.attribute[0].t
        if constant is None:
            nodes.append(node)
        else:
            value = onnx.TensorProto()
            value.CopyFrom(constant)
            value.name = node.output[0]
            known[value.name] = value
            proto.graph.initializer.append(value)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    for opset in proto.opset_import:
        if not opset.domain and _OPSET < opset.version <= _SAME_UNTIL:
            opset.version = _OPSET
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise UnsupportedModule(f"need operations of ONNX operator set {_OPSET}: {_first_line(error)}") from error
    return proto


def _convert(proto: Any, example: Tensor) -> nn.Sequential:
    """The layers of a network.

    Raises:
        UnsupportedModule: an operation has no layer, or the graph is no chain.
    """
    proto, convert = _prepared(proto), _package("onnx2torch").convert
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # it draws each layer's weights before it sets them
            graph = convert(proto).eval()
            ShapeProp(graph).propagate(example)
    except (NotImplementedError, RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise UnsupportedModule(f"onnx2torch cannot convert the network: {_first_line(error)}") from error
    calls = (node for node in graph.graph.nodes if node.op == "call_module")
    return chain(graph, dict(zip(calls, (node.op_type for node in proto.graph.node), strict=True))).eval()


def _compare(proto: Any, model: nn.Module, batch: int, shape: tuple[int, ...]) -> None:
    """Hold the layers against the file, on random inputs in [0, 1] and normal ones.

    Raises:
        InputError: the output is not (n, classes).
        UnsupportedModule: they differ.
    """
    evaluate = importlib.import_module("onnx.reference").ReferenceEvaluator(proto)
    name = next(v.name for v in proto.graph.input if v.name not in {i.name for i in proto.graph.initializer})
    generator = Stream(0).child("onnx").generator("cpu")
    for draw in (torch.rand, torch.randn):
        x = draw(batch, *shape, generator=generator)
        expected = np.asarray(evaluate.run(None, {name: x.numpy()})[0])
        if expected.ndim != 2 or len(expected) != batch or expected.dtype != np.float32:
            raise InputError(f"need an output (n, classes) of float32; got {expected.shape} of {expected.dtype}")
        with torch.no_grad():
            logits = model(x).numpy()
        if logits.shape != expected.shape or not np.allclose(
            logits, expected, rtol=0, atol=1e-4 * float(np.abs(expected).max())
        ):
            raise UnsupportedModule("the layers compute another function than the ONNX file; nothing is proved by them")
