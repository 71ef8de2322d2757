"""ONNX files in: what comes back is verified as the module was, and what has no layer is refused."""

import copy
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from certify import IBP, InputError, Threat, UnsupportedModule
from certify.campaign import onnx as ours
from certify.campaign.onnx import input_shape, load_network, read_onnx
from certify.layers import Normalize, Residual
from certify.lirpa import CROWN
from paper_repro.models import (
    cifar_resnet,
    deep_defense_convnet,
    deep_defense_lenet,
    deep_defense_mlp,
    lenet,
    linear,
    mlp,
    preact_resnet18,
    save_checkpoint,
    wong_kolter,
)

onnx = pytest.importorskip("onnx")
if find_spec("onnx2torch") is None:  # by itself it may not import: it asks for torchvision
    pytest.skip("onnx2torch is not installed", allow_module_level=True)
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (linear, (1, 28, 28)),
    "mlp": (mlp, (1, 28, 28)),
    "lenet": (lenet, (1, 28, 28)),
    "wong_kolter": (wong_kolter, (1, 28, 28)),
    "deep_defense_mlp": (deep_defense_mlp, (1, 28, 28)),
    "deep_defense_lenet": (deep_defense_lenet, (1, 28, 28)),
    "deep_defense_convnet": (deep_defense_convnet, (3, 32, 32)),
    "cifar_resnet": (lambda: cifar_resnet(8, side=8), (3, 8, 8)),
    "preact_resnet18": (lambda: preact_resnet18(side=8, width=4), (3, 8, 8)),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(name: str) -> tuple[nn.Module, Tensor]:
    """A network with statistics of its own in every batch norm, and two inputs."""
    build, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                nn.init.uniform_(module.weight, 0.5, 1)
    return model, torch.rand(2, *shape, generator=seeded())


def export(model: nn.Module, x: Tensor, path: Path, *, dynamo: bool = False, **more: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own exporters
        if dynamo:
            free = ({0: torch.export.Dim.DYNAMIC},)
            torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, dynamic_shapes=free, **more)
        else:
            names: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}, **more}
            torch.onnx.export(model, (x,), str(path), dynamo=False, **names)
    return path


def check_bounds(model: nn.Module, read: nn.Module, x: Tensor) -> None:
    """Logits and the margins of three methods are the module's own."""
    with torch.no_grad():
        torch.testing.assert_close(read(x), model(x), rtol=1e-5, atol=1e-5)
    y = model(x).argmax(1)
    for norm in ("Linf", "L2"):
        threat = Threat(norm, 0.01)
        for method in (IBP(threat), CROWN(threat, intermediate="ibp")):
            torch.testing.assert_close(method.margins(read, x, y), method.margins(model, x, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    model, x = made(name)
    path = export(model, x, tmp_path / "net.onnx")
    assert input_shape(path) == x.shape[1:]
    read = read_onnx(path, x.shape[1:])
    assert not any(m.training for m in read.modules())
    assert type(read[0]) is Normalize
    check_bounds(model, read, x)


@pytest.mark.parametrize("name", ["mlp", "wong_kolter"])
def test_there_and_back_by_crown(name: str, tmp_path: Path) -> None:
    model, x = made(name)
    read, x = read_onnx(export(model, x, tmp_path / "net.onnx")), x[:1]
    y, method = model(x).argmax(1), CROWN(Threat("Linf", 0.01))
    torch.testing.assert_close(method.margins(read, x, y), method.margins(model, x, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["wong_kolter", pytest.param("preact_resnet18", marks=pytest.mark.long)])
def test_there_and_back_by_the_other_exporter(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model, x = made(name)
    check_bounds(model, read_onnx(export(model, x, tmp_path / "net.onnx", dynamo=True)), x)


def test_weights_in_a_file_beside_it(tmp_path: Path) -> None:
    model, x = made("linear")
    path = export(model, x, tmp_path / "net.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert any(value.external_data for value in onnx.load(path, load_external_data=False).graph.initializer)
    with torch.no_grad():
        torch.testing.assert_close(read_onnx(path)(x), model(x), rtol=1e-5, atol=1e-5)


# Graphs by hand.

Node = tuple[str, Sequence[str], str, dict[str, Any]]


def graph(
    nodes: Sequence[Node],
    values: dict[str, Any],
    shape: Sequence[int | str | None] = ("n", 4),
    out: Sequence[int | str] = ("n", 3),
    *,
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
) -> Any:
    """A model whose input is x, and whose output is the last node's."""
    made_nodes = [helper.make_node(op, list(inputs), [name], name=name, **more) for op, inputs, name, more in nodes]
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    ends = [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info(nodes[-1][2], kind, out)]
    content = helper.make_graph(made_nodes, "g", *ends, initial)
    return helper.make_model(content, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def saved(tmp_path: Path, *parts: Any, **more: Any) -> Path:
    onnx.save(graph(*parts, **more), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return torch.randn(*shape, generator=seeded(seed)).numpy()


W, B = normal(4, 3), normal(3, seed=1)


def test_a_product_and_a_sum_are_a_linear_layer(tmp_path: Path) -> None:
    nodes = [("MatMul", ["x", "w"], "h", {}), ("Add", ["b", "h"], "y", {})]
    (layer,) = read_onnx(saved(tmp_path, nodes, {"w": W, "b": B}))
    assert type(layer) is nn.Linear
    assert torch.equal(layer.weight, torch.from_numpy(W.T.copy()))
    assert torch.equal(layer.bias, torch.from_numpy(B))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("offset", [B, B[None], np.float32([2.0]), np.float32(2.0)])
def test_gemm_in_all_its_forms(tmp_path: Path, transposed: int, offset: np.ndarray) -> None:
    weight = W.T.copy() if transposed else W
    options = {"alpha": 0.5, "beta": 3.0, "transB": transposed}
    (layer,) = read_onnx(saved(tmp_path, [("Gemm", ["x", "w", "b"], "y", options)], {"w": weight, "b": offset}))
    assert type(layer) is nn.Linear
    torch.testing.assert_close(layer.weight, torch.from_numpy(0.5 * W.T))
    torch.testing.assert_close(layer.bias, torch.from_numpy(np.zeros(3, np.float32) + 3 * offset.reshape(-1)))


def test_arithmetic_by_constants_is_one_normaliser(tmp_path: Path) -> None:
    """((x * 2 + 1) - m) / 4 on channels: mean (m - 1) / 2, std 2."""
    m = np.float32([0.5, 3.0])[None, :, None, None]
    nodes: list[Node] = [
        ("Mul", ["x", "two"], "a", {}),
        ("Add", ["one", "a"], "b", {}),
        ("Sub", ["b", "m"], "c", {}),
        ("Div", ["c", "four"], "d", {}),
        ("Flatten", ["d"], "e", {}),
        ("MatMul", ["e", "w"], "y", {}),
    ]
    values = {"two": np.float32(2), "one": np.float32([[[[1.0]]]]), "four": np.float32([[4], [4]])[..., None], "m": m}
    shape = ["n", 2, 1, 2]
    normalize, flatten, layer = read_onnx(saved(tmp_path, nodes, {**values, "w": W}, shape))
    assert type(normalize) is Normalize
    assert normalize.mean.tolist() == [-0.25, 1.0]
    assert normalize.std.tolist() == [2.0, 2.0]
    assert (type(flatten), type(layer)) == (nn.Flatten, nn.Linear)


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_a_shape_that_is_computed(tmp_path: Path, opset: int) -> None:
    """What exporters make of x.view(x.size(0), -1)."""
    nodes: list[Node] = [
        ("AveragePool", ["x"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Shape", ["p"], "s", {}),
        ("Gather", ["s", "zero"], "n0", {"axis": 0}),
        ("Unsqueeze", ["n0", "axis"], "n1", {}),
        ("Concat", ["n1", "rest"], "t", {"axis": 0}),
        ("Reshape", ["p", "t"], "r", {}),
        ("MatMul", ["r", "w"], "y", {}),
    ]
    integers = {"zero": np.int64(0), "axis": np.int64([0]), "rest": np.int64([-1])}
    path = saved(tmp_path, nodes, {**integers, "w": W}, ["n", 1, 4, 4], opset=opset)
    assert [type(layer) for layer in read_onnx(path)] == [nn.AvgPool2d, nn.Flatten, nn.Linear]


def test_constants_and_copies(tmp_path: Path) -> None:
    value = numpy_helper.from_array(W)
    nodes: list[Node] = [
        ("Constant", [], "c", {"value": value}),
        ("Identity", ["c"], "w", {}),
        ("Identity", ["x"], "x1", {}),
        ("Constant", [], "two", {"value_float": 2.0}),
        ("Div", ["x1", "two"], "x3", {}),
        ("Dropout", ["x3"], "x2", {}),
        ("Gemm", ["x2", "w"], "h", {}),
        ("Tanh", ["h"], "t", {}),
        ("Sigmoid", ["t"], "y", {}),
    ]
    read = read_onnx(saved(tmp_path, nodes, {}))
    assert [type(layer) for layer in read] == [Normalize, nn.Linear, nn.Tanh, nn.Sigmoid]
    assert set(read[0].std.tolist()) == {2.0}


def test_files_for_one_example_serve_for_more(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("GlobalAveragePool", ["x"], "p", {}),
        ("Reshape", ["p", "one_row"], "r", {}),
        ("MatMul", ["r", "w"], "y", {}),
    ]
    path = saved(tmp_path, nodes, {"one_row": np.int64([1, -1]), "w": W}, [1, 4, 2, 2], [1, 3])
    x = torch.rand(5, 4, 2, 2, generator=seeded())
    torch.testing.assert_close(read_onnx(path)(x), x.mean((2, 3)) @ torch.from_numpy(W))


def test_skips_nest(tmp_path: Path) -> None:
    """relu(x) + (relu(x) w + relu(relu(x) w)), and the input added to itself."""
    square = normal(4, 4)
    nodes: list[Node] = [
        ("Add", ["x", "x"], "d", {}),
        ("Relu", ["d"], "a", {}),
        ("MatMul", ["a", "q"], "b", {}),
        ("Relu", ["b"], "c", {}),
        ("Add", ["b", "c"], "e", {}),
        ("Add", ["a", "e"], "f", {}),
        ("MatMul", ["f", "w"], "y", {}),
    ]
    read = read_onnx(saved(tmp_path, nodes, {"q": square, "w": W}))
    assert [type(layer) for layer in read] == [Residual, nn.ReLU, Residual, nn.Linear]
    x = torch.randn(3, 4, generator=seeded())
    a = (2 * x).relu()
    b = a @ torch.from_numpy(square)
    torch.testing.assert_close(read(x), (a + b + b.relu()) @ torch.from_numpy(W))
    lower = IBP(Threat("Linf", 0.1, box=None)).bounds(read, x).lower
    assert (lower <= read(x)).all()


GEMM = ("Gemm", ["x", "w"], "y", {})
SQUARE = normal(4, 4)
REFUSED: list[tuple[str, list[Node], dict[str, Any], dict[str, Any], str]] = [
    (
        "softmax",
        [("Gemm", ["x", "w"], "h", {}), ("Softmax", ["h"], "y", {})],
        {"w": W},
        {},
        "operation Softmax; need Conv",
    ),
    (
        "falls",
        [("Mul", ["x", "c"], "h", {}), ("Gemm", ["h", "w"], "y", {})],
        {"w": W, "c": -(normal(4) ** 2)},
        {},
        "need Mul by positive constants; got -",
    ),
    (
        "from one",
        [("Sub", ["c", "x"], "h", {}), ("Gemm", ["h", "w"], "y", {})],
        {"w": W, "c": np.float32(1)},
        {},
        "no layer for Sub from shape (2, 4)",
    ),
    (
        "widens",
        [("Add", ["x", "c"], "h", {}), ("Gemm", ["h", "w"], "y", {})],
        {"w": W, "c": normal(2, 4)},
        {"shape": [2, 4], "out": [2, 3]},
        "need Add by constants per channel for shape (2, 4); got (2, 4)",
    ),
    (
        "a product of two",
        [("Mul", ["x", "x"], "h", {}), ("Gemm", ["h", "w"], "y", {})],
        {"w": W},
        {},
        "need Mul with constants; got two values",
    ),
    (
        "matrix first",
        [("MatMul", ["q", "x"], "y", {})],
        {"q": SQUARE},
        {"shape": [4, 3], "out": [4, 3]},
        "no layer for MatMul from shape (4, 3)",
    ),
    (
        "rows of rows",
        [("MatMul", ["x", "w"], "h", {}), ("Reshape", ["h", "s"], "y", {})],
        {"w": W, "s": np.int64([1, 6])},
        {"shape": [1, 2, 4], "out": [1, 6]},
        "no layer for MatMul from shape (1, 2, 4)",
    ),
    (
        "transposed",
        [("Gemm", ["x", "w"], "y", {"transA": 1})],
        {"w": W},
        {"shape": [4, 4], "out": [4, 3]},
        "need a product of rows with a constant matrix",
    ),
    (
        "offsets by row",
        [("Gemm", ["x", "w", "b"], "y", {})],
        {"w": W, "b": normal(2, 1)},
        {"shape": [2, 4], "out": [2, 3]},
        "need an offset for each of 3 outputs; got shape (2, 1)",
    ),
    (
        "another order",
        [("Reshape", ["x", "s"], "h", {}), ("Gemm", ["h", "w"], "y", {})],
        {"w": normal(2, 3), "s": np.int64([-1, 2])},
        {"out": [None, 3]},
        "no layer for Reshape from shape (2, 4) to (4, 2)",
    ),
    (
        "a shape",
        [("Shape", ["x"], "s", {}), ("Cast", ["s"], "y", {"to": 1})],
        {},
        {"out": [2]},
        "an operation on shapes lies between",
    ),
    (
        "across",
        [
            ("Relu", ["x"], "a", {}),
            ("Relu", ["a"], "b", {}),
            ("Relu", ["b"], "c", {}),
            ("Add", ["a", "c"], "d", {}),
            ("Add", ["d", "b"], "e", {}),
            ("Gemm", ["e", "w"], "y", {}),
        ],
        {"w": W},
        {},
        "need skips that nest",
    ),
    (
        "dilated pooling",
        [
            ("AveragePool", ["x"], "p", {"kernel_shape": [2, 2], "dilations": [2, 2]}),
            ("Flatten", ["p"], "f", {}),
            ("Gemm", ["f", "w"], "y", {}),
        ],
        {"w": W},
        {"shape": ["n", 1, 4, 4], "opset": 20},
        "need operations of ONNX operator set 18: Unrecognized attribute: dilations",
    ),
    (
        "one side padded",
        [("Conv", ["x", "k"], "p", {"pads": [0, 0, 1, 1]}), ("Flatten", ["p"], "f", {}), ("Gemm", ["f", "w"], "y", {})],
        {"w": W, "k": normal(1, 1, 2, 2)},
        {"shape": ["n", 1, 2, 2]},
        "no layer for Conv",
    ),
    (
        "same",
        [
            ("Conv", ["x", "k"], "p", {"auto_pad": "SAME_UPPER"}),
            ("Flatten", ["p"], "f", {}),
            ("Gemm", ["f", "w"], "y", {}),
        ],
        {"w": W, "k": normal(1, 1, 2, 2)},
        {"shape": ["n", 1, 2, 2]},
        'onnx2torch cannot convert the network: "SAME_UPPER"',
    ),
]


@pytest.mark.parametrize(("nodes", "values", "more", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_has_no_layer_is_refused(
    tmp_path: Path, nodes: list[Node], values: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModule, match=re.escape(message)):
        read_onnx(saved(tmp_path, nodes, values, **more))


def test_constants_that_differ_within_a_channel(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Sub", ["x", "c"], "h", {}),
        ("Flatten", ["h"], "f", {}),
        ("Gemm", ["f", "w"], "y", {}),
    ]
    path = saved(tmp_path, nodes, {"w": W, "c": normal(1, 1, 2, 2)}, ["n", 1, 2, 2])
    with pytest.raises(UnsupportedModule, match="need Sub by one constant per channel; got values that differ within"):
        read_onnx(path)
    path = saved(tmp_path, nodes, {"w": W, "c": np.zeros((1, 1, 2, 2), np.float32)}, ["n", 1, 2, 2])
    assert type(read_onnx(path)[0]) is Normalize


BAD: list[tuple[str, dict[str, Any], str]] = [
    (
        "float64",
        {"values": {"w": W.astype(np.float64)}, "kind": TensorProto.DOUBLE},
        "need a network of float32 inputs; got DOUBLE",
    ),
    (
        "free",
        {"shape": ["n", "d"]},
        "need inputs (n, ...) of a known shape, where n alone may be free; got (None, None)",
    ),
    (
        "no batch",
        {"shape": [4], "nodes": [("MatMul", ["x", "w"], "y", {})], "out": [3]},
        "where n alone may be free; got (4,)",
    ),
    (
        "output",
        {"nodes": [("Relu", ["x"], "y", {})], "shape": ["n", 4, 1], "out": ["n", 4, 1]},
        "need an output (n, classes) of float32; got (2, 4, 1)",
    ),
]


@pytest.mark.parametrize(("parts", "message"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_what_is_not_about_such_inputs_is_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read_onnx(saved(tmp_path, **{"nodes": [GEMM], "values": {"w": W}, **parts}))


def test_one_input_and_one_output(tmp_path: Path) -> None:
    proto = graph([GEMM], {"w": W})
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    onnx.save(proto, tmp_path / "two.onnx")
    with pytest.raises(InputError, match="need one input and one output; got 2 and 1"):
        read_onnx(tmp_path / "two.onnx")


def test_an_initialiser_may_be_listed_as_an_input(tmp_path: Path) -> None:
    """As files of old do."""
    proto = graph([GEMM], {"w": W})
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    onnx.save(proto, tmp_path / "old.onnx")
    assert input_shape(tmp_path / "old.onnx") == (4,)
    assert len(read_onnx(tmp_path / "old.onnx")) == 1


def test_the_data_must_fit(tmp_path: Path) -> None:
    path = saved(tmp_path, [GEMM], {"w": W})
    assert len(read_onnx(path, (4,))) == 1
    with pytest.raises(InputError, match=re.escape("takes inputs of shape (4,); need (1, 2, 2)")):
        read_onnx(path, (1, 2, 2))


def test_networks_by_name_or_file(tmp_path: Path) -> None:
    path = saved(tmp_path, [GEMM], {"w": W})
    network, name = load_network(None, None, path, (4,))
    assert name == "g.onnx"
    assert type(network) is nn.Sequential
    weights = save_checkpoint(linear(), tmp_path / "checkpoint", {})
    network, name = load_network("paper_repro.models:linear", weights, None, (1, 28, 28))
    assert name == "paper_repro.models:linear"
    assert torch.equal(network[2].weight, load_file(weights)["2.weight"])
    for wrong in ((None, None, None), ("a:b", weights, path), (None, weights, path), ("a:b", None, None)):
        with pytest.raises(InputError, match="need --model and --weights, or --onnx alone"):
            load_network(*wrong, (4,))


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="need an ONNX file; no file at"):
        read_onnx(tmp_path / "no.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x80\x04not protobuf")
    with pytest.raises(InputError, match="is not a usable ONNX file: "):
        read_onnx(tmp_path / "bad.onnx")
    with pytest.raises(InputError, match="is not a usable ONNX file: "):
        read_onnx(saved(tmp_path, [("Gemm", ["x", "w"], "y", {"gamma": 1.0})], {"w": W}))


def outside(tmp_path: Path, location: str) -> Path:
    """A network in a folder of its own, whose weights are said to lie at a location."""
    proto = graph([GEMM], {"w": W})
    value = proto.graph.initializer[0]
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", "0"), ("length", str(W.nbytes))):
        entry = value.external_data.add()
        entry.key, entry.value = key, text
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


def test_data_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(W.tobytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights.bin").write_bytes(W.tobytes())
    (tmp_path / "folder" / "link.bin").symlink_to(secret)
    (layer,) = read_onnx(outside(tmp_path, "weights.bin"))
    assert torch.equal(layer.weight, torch.from_numpy(W.T.copy()))
    for location in ("../secret.bin", str(secret), "link.bin", "missing.bin", "../folder/../secret.bin"):
        with pytest.raises(InputError, match="is not a usable ONNX file: "):
            read_onnx(outside(tmp_path, location))


def test_another_function_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[Node] = [("Gemm", ["x", "w"], "h", {}), ("Relu", ["h"], "y", {})]
    path, inner = saved(tmp_path, nodes, {"w": W}), ours.chain
    monkeypatch.setattr(ours, "chain", lambda *a: inner(*a)[:1])
    with pytest.raises(UnsupportedModule, match="the layers compute another function than the ONNX file"):
        read_onnx(path)


def test_no_random_state_is_touched(tmp_path: Path) -> None:
    path, state = saved(tmp_path, [GEMM], {"w": W}), torch.get_rng_state()
    read_onnx(path)
    assert torch.equal(torch.get_rng_state(), state)


# Packages.


@pytest.mark.parametrize("name", ["onnx", "onnx2torch"])
def test_how_to_install_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, [GEMM], {"w": W})
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=re.escape("pip install 'robust-radius[interop]'")):
        read_onnx(path)


def test_torchvision_is_stood_in_for_where_it_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "ops.py").write_text("")
    (broken / "__init__.py").write_text("import torchvision.ops\nraise RuntimeError('operator torchvision::nms')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ours._torchvision():
        from torchvision.ops import roi_align  # type: ignore[import-not-found]

        assert roi_align is None
    assert not any(n.partition(".")[0] == "torchvision" for n in sys.modules)
    present = ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", present)
    with ours._torchvision():
        assert sys.modules["torchvision"] is present
    assert sys.modules["torchvision"] is present


def test_the_file_is_not_changed_in_memory(tmp_path: Path) -> None:
    proto = graph([("Identity", ["w"], "v", {}), ("Gemm", ["x", "v"], "y", {})], {"w": W}, opset=20)
    before = copy.deepcopy(proto)
    ours._prepared(proto)
    assert proto == before
