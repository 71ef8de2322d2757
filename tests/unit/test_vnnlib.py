"""Properties: bounds over boxes against closed forms and corners; VNN-LIB files, case by case; both command lines."""

import gzip
import re
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

import certify.lirpa
from analysis.commands.property import falsify_property
from analysis.property_attack import BoxAttack, breaks
from certify import IBP, InputError, Stream, Threat, UnsupportedModule
from certify.campaign.cli import make_app
from certify.campaign.property_command import BoundsName, make_bounds, verify_property
from certify.campaign.vnnlib import parse_vnnlib, read_vnnlib
from certify.layers import Normalize
from certify.lirpa import CROWN
from certify.property import Bounds, Case, fixed_linear, holds, interval_bounds

BOUNDS = get_args(BoundsName)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def affine() -> nn.Sequential:
    """Logits (a + 2 b + 1, a - b) of x = (2 a, b), the first divided by a normaliser."""
    head = fixed_linear(torch.tensor([[1.0, 2.0], [1.0, -1.0]]), torch.tensor([1.0, 0.0]))
    return nn.Sequential(Normalize([0.0, 0.0], [2.0, 1.0]), head).eval()


def small(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        return nn.Sequential(Normalize([0.5], [0.5]), *layers).eval()


# Bounds over boxes.


@pytest.mark.parametrize("name", BOUNDS)
def test_exact_on_an_affine_network(name: BoundsName) -> None:
    """Boxes with edges of different lengths; rows -y0, y1 - y0 and 2 y0."""
    lower, upper = tensor([-2, 0], [0, -1]), tensor([2, 3], [4, -1])
    rows = tensor([-1, 0], [-1, 1], [2, 0])
    # a in [-1, 1], b in [0, 3]: y0 in [0, 8], y1 - y0 = -3 b - 1; a in [0, 2], b = -1: y0 in [-1, 1], y1 - y0 = 2
    expected = tensor([-8, -10, 0], [-1, 2, -2])
    found = make_bounds(name)(affine(), lower, upper, rows)
    assert found.dtype == (torch.float64 if name.startswith("ibp") else torch.float32)
    # Rounding outward, rows are not merged: a difference of logits is looser, a logit by itself is not.
    tight = [0, 2] if name == "ibp-exact" else [0, 1, 2]
    torch.testing.assert_close(found.double()[:, tight], expected[:, tight], rtol=1e-6, atol=1e-6)
    if name == "ibp-exact":
        assert (found < expected).all()


@pytest.mark.parametrize("name", BOUNDS)
def test_a_ball_is_a_box(name: BoundsName) -> None:
    """The margins of the Linf ball, with the same method."""
    model, x, eps = small(), torch.rand(3, 1, 2, 2, generator=seeded()), 0.1
    y = torch.tensor([1, 1, 1])
    rows = torch.eye(3)[1] - torch.eye(3)[[0, 2]]
    threat = Threat("Linf", eps, box=None)
    methods = {
        "ibp": IBP(threat),
        "crown-ibp": CROWN(threat, intermediate="ibp"),
        "fast-lin": CROWN(threat, slopes="fast_lin"),
        "crown": CROWN(threat),
        "alpha-crown": CROWN(threat, slopes="optimized"),
    }
    method = methods.get(name, IBP(threat, outward=True))
    x = x.double() if name.startswith("ibp") else x
    found = make_bounds(name)(model, x.double() - eps, x.double() + eps, rows.double())
    expected = method.margins(model, x, y)[:, [0, 2]]
    if name == "ibp-exact":  # without merging, which rounds
        assert (found <= IBP(threat).margins(model, x, y)[:, [0, 2]]).all()
    else:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from(["ibp", "ibp-exact", "crown"]))
def test_no_input_is_below(seed: int, name: BoundsName) -> None:
    generator = seeded(seed)
    model = small(seed).double() if name != "crown" else small(seed)
    ends = torch.rand(2, 2, 1, 2, 2, generator=generator, dtype=torch.float64).sort(0).values
    rows = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    lower = make_bounds(name)(model, ends[0], ends[1], rows)
    share = torch.rand(200, *ends.shape[1:], generator=generator, dtype=torch.float64).round()
    share[100:] = torch.rand(100, *ends.shape[1:], generator=generator, dtype=torch.float64)
    x = ends[0] + share * (ends[1] - ends[0])
    with torch.no_grad():
        values = small(seed).double()(x.flatten(0, 1)) @ rows.T
    slack = 1e-5 if name == "crown" else 1e-9
    assert (values.view(200, 2, 2) >= lower.double() - slack).all()


def test_a_last_layer_is_merged() -> None:
    """y0 - y1 of logits (h, h) is 0 whatever h is; unmerged it is not, and rounding outward does not merge."""
    model = nn.Sequential(fixed_linear(torch.ones(1, 1), None), nn.ReLU(), fixed_linear(torch.ones(2, 1), None)).eval()
    ends, rows = (tensor([0.0]), tensor([4.0])), tensor([1, -1])
    assert interval_bounds(model, *ends, rows).tolist() == [[0.0]]
    outward = float(interval_bounds(model, *ends, rows, outward=True))
    assert outward < -4
    assert outward == pytest.approx(-4)


def test_bounds_refuse() -> None:
    lower, upper, rows = tensor([0, 0]), tensor([1, 1]), tensor([1, 0])
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        interval_bounds(affine().train(), lower, upper, rows)
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        CROWN(Threat("Linf", 0.0)).box_bounds(affine().train(), lower, upper, rows)
    with pytest.raises(InputError, match="need a threat in Linf to bound over boxes; got L2"):
        CROWN(Threat("L2", 0.0)).box_bounds(affine(), lower, upper, rows)
    along = nn.Sequential(fixed_linear(torch.eye(2), None)).eval()  # along the last axis of inputs that have two
    for outward in (False, True):
        with pytest.raises(InputError, match=r"need a network with logits \(n, classes\); got \(1, 2, 1\)"):
            interval_bounds(along, *torch.rand(2, 1, 2, 2).sort(0).values, rows, outward=outward)
    with pytest.raises(UnsupportedModule, match="no interval rule for GELU"):
        interval_bounds(nn.Sequential(affine(), nn.GELU()).eval(), lower, upper, rows)


def test_ends_are_rounded_outward(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 is no float32: the box that is bounded holds the one that was meant."""
    seen: list[tuple[Tensor, Tensor]] = []
    inner = certify.lirpa._Network.over_boxes
    monkeypatch.setattr(certify.lirpa._Network, "over_boxes", lambda s, *a: seen.append(a[:2]) or inner(s, *a))
    end = tensor([0.1], [0.3], [0.7], [0.25])
    model = nn.Sequential(fixed_linear(torch.ones(1, 1), None)).eval()
    CROWN(Threat("Linf", 0.0), batch=4).box_bounds(model, end, end, tensor([1]))
    ((low, high),) = seen
    assert low.dtype == high.dtype == torch.float32
    assert (low.double() < end).flatten().tolist() == [True, True, True, False]
    assert (high.double() > end).flatten().tolist() == [True, True, True, False]
    assert (torch.nextafter(low, high) >= high).all()


# Properties.


def case(lower: list[float], upper: list[float], rows: list[list[float]], limits: list[float]) -> Case:
    return Case(tensor(*lower), tensor(*upper), tensor(*rows).view(-1, 2), tensor(*limits))


@pytest.mark.parametrize("name", BOUNDS)
def test_holds(name: BoundsName) -> None:
    """y0 in [0, 8] on the box: y0 <= -0.1 never occurs, y0 <= 0.1 may; of two rows one that cannot is enough."""
    bounds, model = make_bounds(name), affine()
    ends = [-2.0, 0.0], [2.0, 3.0]
    never, may = case(*ends, [[1, 0]], [-0.1]), case(*ends, [[1, 0]], [0.1])
    assert holds(bounds, model, [never])
    assert not holds(bounds, model, [may])
    assert not holds(bounds, model, [never, may])
    assert not holds(bounds, model, [case(*ends, [[1, 0]], [0])])  # at the limit it does occur
    assert holds(bounds, model, [case(*ends, [[1, 0], [1, 0]], [0.1, -0.1])])
    assert not holds(bounds, model, [case(*ends, [], [])])


def tent() -> nn.Sequential:
    """Logits (|x|, 0): intervals lose that relu(x) and relu(-x) are not both large, until boxes are halved."""
    first = fixed_linear(torch.tensor([[1.0], [-1.0]]), None)
    return nn.Sequential(first, nn.ReLU(), fixed_linear(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), None)).eval()


def test_halving_boxes() -> None:
    """|x| >= 1.5 does not occur on [-1, 1]: intervals give 2 for the box and 1 for each half."""
    never = Case(tensor(-1), tensor(1), tensor([-1, 0]), tensor(-1.5))
    assert not holds(interval_bounds, tent(), [never])
    assert not holds(interval_bounds, tent(), [never], boxes=2)  # the first and one half
    assert holds(interval_bounds, tent(), [never], boxes=3)
    assert holds(interval_bounds, tent(), [never], boxes=3, batch=1)
    occurs = Case(tensor(-1), tensor(1), tensor([-1, 0]), tensor(-0.9))
    assert not holds(interval_bounds, tent(), [occurs], boxes=200)


def test_cases_about_one_box_are_bounded_together() -> None:
    """Both ends of the tent, and each must be ruled out; a box of its own is another matter."""
    calls: list[tuple[int, int]] = []

    def bounds(model: nn.Module, lower: Tensor, upper: Tensor, rows: Tensor) -> Tensor:
        calls.append((len(lower), len(rows)))
        return interval_bounds(model, lower, upper, rows)

    far, near = (Case(tensor(-1), tensor(1), tensor([-1, 0], [0, 1]), tensor(limit, 1.0)) for limit in (-3.0, -1.5))
    other = Case(tensor(0), tensor(1), tensor([-1, 0]), tensor(-3.0))
    assert not holds(bounds, tent(), [far, other, near])
    assert calls == [(1, 4)]
    assert holds(bounds, tent(), [far, other, near], boxes=3)
    assert calls[1:] == [(1, 4), (2, 4), (1, 1)]


def test_halves_cover() -> None:
    """Every box that was bounded, and every point of the first in one of the leaves."""
    seen: list[tuple[Tensor, Tensor]] = []

    def bounds(model: nn.Module, lower: Tensor, upper: Tensor, rows: Tensor) -> Tensor:
        seen.extend(zip(lower, upper, strict=True))
        # settled where smaller than a quarter of the whole
        return torch.where(((upper - lower).flatten(1).prod(1) <= 0.25)[:, None], 1.0, -1.0).expand(-1, len(rows))

    with torch.no_grad():
        model = nn.Sequential(nn.Flatten(), fixed_linear(torch.zeros(2, 2), None)).eval()
    whole = Case(tensor([0], [0]), tensor([4], [0.25]), tensor([1, 0]), tensor(0))
    assert holds(bounds, model, [whole], boxes=7)
    leaves = [pair for pair in seen if float((pair[1] - pair[0]).prod()) <= 0.25]
    assert len(seen) == 7
    assert len(leaves) == 4
    assert sorted((float(low[0]), float(high[0])) for low, high in leaves) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert all(float(low[1]) == 0 and float(high[1]) == 0.25 for low, high in leaves)


def test_nothing_is_settled_by_nan() -> None:
    def bounds(model: nn.Module, lower: Tensor, upper: Tensor, rows: Tensor) -> Tensor:
        return torch.full((len(lower), len(rows)), torch.nan)

    assert not holds(bounds, affine(), [case([0, 0], [1, 1], [[1, 0]], [0])])


def test_properties_refuse() -> None:
    good = case([0, 0], [1, 1], [[1, 0]], [0])
    for more, message in (({"boxes": 0}, "integer boxes >= 1; got 0"), ({"batch": 0}, "integer batch >= 1; got 0")):
        with pytest.raises(InputError, match=message):
            holds(interval_bounds, affine(), [good], **more)
    with pytest.raises(InputError, match="need at least one case"):
        holds(interval_bounds, affine(), [])
    three = Case(tensor(0, 0), tensor(1, 1), tensor([1, 0, 0]), tensor(0))
    with pytest.raises(InputError, match="need rows of 2 logits, as many as the network has; got 3"):
        holds(interval_bounds, affine(), [good, three])
    with pytest.raises(InputError, match="need ends of one shape"):
        Case(tensor(0), tensor(0, 1), tensor([1]), tensor(1))
    with pytest.raises(InputError, match="need ends of one shape"):
        Case(tensor(0), tensor(0), tensor([1]), tensor(1, 2))
    with pytest.raises(InputError, match="need finite values in float64"):
        Case(tensor(0), tensor(torch.inf), tensor([1]), tensor(1))
    with pytest.raises(InputError, match="need finite values in float64"):
        Case(torch.zeros(1), torch.zeros(1), torch.zeros(0, 1), torch.zeros(0))
    with pytest.raises(InputError, match="need lower <= upper; the box is empty"):
        Case(tensor(1), tensor(0), tensor([1]), tensor(1))


# VNN-LIB.

DECLARED = "\n".join(f"(declare-const {v} Real)" for v in ("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
BOX = "(assert (>= X_0 -1)) (assert (<= X_0 0.5)) (assert (<= 1e-1 X_1)) (assert (>= .25 X_1))"


def parsed(*asserts: str, shape: tuple[int, ...] | None = None) -> list[Case]:
    return parse_vnnlib("\n".join([DECLARED, BOX, *(f"(assert {a})" for a in asserts)]), shape)


def test_a_robustness_property() -> None:
    """Class 1 loses to 0, or to 2: two cases over one box."""
    cases = parsed("(or (and (>= Y_0 Y_1)) (and (>= Y_2 Y_1)))", shape=(1, 2))
    for found, rows in zip(cases, ([[-1, 1, 0]], [[0, 1, -1]]), strict=True):
        assert found.lower.tolist() == [[-1, 0.1]]
        assert found.upper.tolist() == [[0.5, 0.25]]
        assert found.rows.tolist() == rows
        assert found.limits.tolist() == [0]


def test_all_the_terms() -> None:
    (found,) = parsed("(<= (+ Y_0 (* 2.0 Y_1) -3) (- Y_2 1 Y_0))", "(>= (- Y_1) (* Y_0 -.5e1))", "(<= 1 2)")
    # 2 y0 + 2 y1 - y2 <= 2 and y1 - 5 y0 <= 0
    assert found.rows.tolist() == [[2, 2, -1], [-5, 1, 0]]
    assert found.limits.tolist() == [2, 0]
    assert found.lower.tolist() == [-1, 0.1]


def test_bounds_meet_and_scale() -> None:
    (found,) = parsed("(<= (* -2 X_0) 1)", "(<= (+ X_1 X_1) 0.4)", "(<= X_0 9)", "(<= Y_0 3)")
    assert found.lower.tolist() == [-0.5, 0.1]
    assert found.upper.tolist() == [0.5, 0.2]


def test_boxes_in_the_cases() -> None:
    """Alternatives of inputs times alternatives of outputs, and one whose box is empty."""
    cases = parsed(
        "(or (and (<= X_0 0) (<= Y_0 0)) (and (>= X_0 0) (<= Y_1 0)) (and (>= X_0 2) (<= Y_1 1)))",
        "(or (<= Y_2 5) (and (<= Y_2 6) (or (>= Y_0 7) (>= Y_1 7))) (<= 2 1))",
    )
    assert [(c.lower[0].item(), c.upper[0].item(), len(c.rows)) for c in cases] == [
        (-1, 0, 2),
        (-1, 0, 3),
        (-1, 0, 3),
        (0, 0.5, 2),
        (0, 0.5, 3),
        (0, 0.5, 3),
    ]
    assert cases[4].rows.tolist() == [[0, 1, 0], [0, 0, 1], [-1, 0, 0]]
    assert cases[4].limits.tolist() == [0, 6, -7]


def test_comments_and_no_rows() -> None:
    (found,) = parse_vnnlib(f"; unsafe (\n{DECLARED}{BOX}; )")
    assert found.rows.shape == (0, 3)
    assert found.limits.shape == (0,)


REFUSED = [
    ("(assert (< Y_0 1))", "need <= or >= of two terms, under 'and' and 'or'; got (< Y_0 1)"),
    ("(assert (<= Y_0))", "need <= or >= of two terms, under 'and' and 'or'; got (<= Y_0)"),
    ("(assert (and))", "under 'and' and 'or'; got (and)"),
    ("(assert (not (<= Y_0 1)))", "under 'and' and 'or'; got (not (<= Y_0 1))"),
    ("(assert (<= Y_0 Y_3))", "need a number or a declared variable; got Y_3"),
    ("(assert (<= Y_0 nan))", "need a number or a declared variable; got nan"),
    ("(assert (<= Y_0 1_0))", "need a number or a declared variable; got 1_0"),
    ("(assert (<= (* Y_0 Y_1) 1))", "need linear terms; got (* Y_0 Y_1)"),
    ("(assert (<= (/ Y_0 2) 1))", "need a linear term; got (/ Y_0 2)"),
    ("(assert (<= (+ Y_0) 1))", "need a linear term; got (+ Y_0)"),
    ("(assert (<= X_0 Y_0))", "need bounds on single inputs; got an inequality of X_0, Y_0"),
    ("(assert (<= (+ X_0 X_1) 1))", "need bounds on single inputs; got an inequality of X_0, X_1"),
    ("(assert (<= Y_0 1e999))", "need numbers, and sums and products of them, in the range of float64"),
    ("(assert (<= (- 1e999 1e999) 0))", "need numbers, and sums and products of them, in the range of float64"),
    ("(assert (<= (* 1e200 (* 1e200 X_0)) 0))", "need numbers, and sums and products of them, in the range of float64"),
    ("(assert (>= X_0 1))", "no input satisfies the assertions: every box is empty"),
    ("(declare-const X_0 Real)", "need (declare-const X_i Real), each once, or (assert ...)"),
    ("(declare-const Z_0 Real)", "got (declare-const Z_0 Real)"),
    ("(declare-const X_02 Real)", "got (declare-const X_02 Real)"),
    ("(declare-const X_2 Int)", "got (declare-const X_2 Int)"),
    ("(check-sat)", "got (check-sat)"),
    ("stray", "or (assert ...) of VNN-LIB 1.0; got stray"),
    ("(vnnlib-version <2.0>)", "of VNN-LIB 1.0; got (vnnlib-version <2.0>)"),
    ("(declare-const X_7 Real)", "need X_0, X_1, ... declared without gaps; got 3 of them"),
    ("(declare-const X_2 Real)", "need a lower and an upper bound for every input; X_2 lacks one"),
    ("(declare-const X_2 Real) (assert (<= X_2 1))", "need a lower and an upper bound for every input; X_2 lacks one"),
    ("(assert (<= Y_0 1)", "need a ')' after each '('; 1 missing at the end"),
    (")", "need a '(' before each ')'"),
    ("(" * 60 + ")" * 60, "need at most 50 parentheses within one another"),
    ("(assert (or (<= Y_0 1) (<= Y_0 2)))" * 14, "need a property of at most 10000 cases"),
    ("(assert (and" + "(or (<= Y_0 1) (<= Y_0 2))" * 14 + "))", "need a property of at most 10000 cases"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_other_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse_vnnlib(f"{DECLARED}{BOX}{text}")


def test_files(tmp_path: Path) -> None:
    text = f"{DECLARED}{BOX}(assert (<= Y_0 1))"
    (tmp_path / "p.vnnlib").write_text(text)
    (tmp_path / "p.vnnlib.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("p.vnnlib", "p.vnnlib.gz"):
        (found,) = read_vnnlib(tmp_path / name, (2, 1, 1))
        assert found.lower.shape == (2, 1, 1)
    with pytest.raises(InputError, match=re.escape("need 3 inputs X_i for shape (3,); got 2")):
        read_vnnlib(tmp_path / "p.vnnlib", (3,))
    with pytest.raises(InputError, match="need a VNN-LIB file; no file at"):
        read_vnnlib(tmp_path / "q.vnnlib")
    packed = gzip.compress(text.encode())
    turned = bytes([*packed[:14], packed[14] ^ 0xFF, *packed[15:]])  # within the deflated data
    for data in (b"\xff\xfe", packed[:-9], b"\x1f\x8bxxxxxxxxxxxxxxxxxx", turned, packed[:10] + b"\xff" * 20):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(InputError, match="is not a text file"):
            read_vnnlib(tmp_path / "bad")
    (tmp_path / "bad").write_text("(check-sat)")
    with pytest.raises(InputError, match=r"bad: need \(declare-const"):
        read_vnnlib(tmp_path / "bad")


# Counterexamples.


def test_an_attack_finds_what_occurs() -> None:
    """|x| >= 0.9 on [-1, 1] at either end, and never |x| >= 1.1."""
    for limit, occurs in ((-0.9, True), (-1.1, False)):
        found = BoxAttack()(tent(), Case(tensor(-1), tensor(1), tensor([-1, 0]), tensor(limit)), rng=Stream(0))
        assert (found is not None) == occurs
        if found is not None:
            assert found.shape == (1,)
            assert abs(float(found)) >= 0.9


def test_all_rows_must_be_satisfied() -> None:
    """a + 2 b + 1 <= 3 and a - b >= 1.9 meet only near a = 2, b = 0, which few points of the box are."""
    both = case([-4, -4], [4, 4], [[1, 0], [-1, 0], [0, -1]], [3, -2.99, -1.9])
    found = BoxAttack(steps=200, restarts=20)(affine(), both, rng=Stream(0))
    assert found is not None
    assert bool(breaks(affine(), both, found[None])[0])
    a, b = float(found[0]) / 2, float(found[1])
    assert a + 2 * b + 1 <= 3 + 1e-6
    assert a - b >= 1.9 - 1e-6


def test_a_counterexample_lies_in_the_box() -> None:
    """Ends that are no float32 are rounded inward, so that the float32 found is in the box that was meant."""
    for low, high in product((0.1, 0.3), (0.7, 0.9)):
        anywhere = Case(tensor(low), tensor(high), torch.zeros(0, 2, dtype=torch.float64), tensor())
        found = BoxAttack()(tent(), anywhere, rng=Stream(0))
        assert found is not None
        assert low <= float(found) <= high
    point = Case(tensor(0.1), tensor(0.1), torch.zeros(0, 2, dtype=torch.float64), tensor())
    assert BoxAttack()(tent(), point, rng=Stream(0)) is None  # it holds no float32


def test_breaks_is_exact_about_box_and_rows() -> None:
    this = case([0, 0], [1, 1], [[1, 0]], [2.0])
    x = torch.tensor([[1.0, 0.25], [1.0, 0.2501], [1.001, 0.0], [-0.001, 0.0], [torch.nan, 0.0]])
    assert breaks(affine(), this, x).tolist() == [True, False, False, False, False]


def test_attacks_refuse() -> None:
    for more, message in (({"steps": 0}, "integer steps >= 1; got 0"), ({"restarts": 0}, "integer restarts >= 1")):
        with pytest.raises(InputError, match=message):
            BoxAttack(**more)
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        BoxAttack()(tent().train(), Case(tensor(-1), tensor(1), tensor([-1, 0]), tensor(0)), rng=Stream(0))


# Command lines.


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """|x| as an ONNX network, and where to put a property."""
    onnx = pytest.importorskip("onnx")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b"], ["y"]),
    ]
    a, b = np.float32([[1, -1]]), np.float32([[1, 0], [1, 0]])
    initial = [onnx.numpy_helper.from_array(v, n) for n, v in (("a", a), ("b", b))]
    ends = [helper.make_tensor_value_info(n, real, ["n", d]) for n, d in (("x", 1), ("y", 2))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx", tmp_path / "p.vnnlib"


def tent_property(limit: str) -> str:
    names = "".join(f"(declare-const {v} Real)" for v in ("X_0", "Y_0", "Y_1"))
    return f"{names}(assert (>= X_0 -1))(assert (<= X_0 1))(assert (>= Y_0 {limit}))"


def command(function: Any, *words: str) -> str:
    app = make_app(None)
    app.command()(function)
    result = CliRunner().invoke(app, [function.__name__.replace("_", "-"), *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("limit", "words", "verdict"),
    [
        ("2.1", ["--method", "ibp"], "holds"),
        ("1.5", ["--method", "ibp"], "unknown"),
        ("1.5", ["--method", "ibp-exact", "--boxes", "3"], "holds"),
        ("1.5", [], "holds"),
        ("0.5", ["--boxes", "50"], "unknown"),
    ],
)
def test_verify_property(files: tuple[Path, Path], limit: str, words: list[str], verdict: str) -> None:
    network, text = files
    text.write_text(tent_property(limit))
    assert command(verify_property, "--onnx", str(network), "--vnnlib", str(text), *words) == f"{verdict}\n"


def test_falsify_property(files: tuple[Path, Path]) -> None:
    network, text = files
    text.write_text(tent_property("0.9"))
    verdict, first, *rest = command(falsify_property, "--onnx", str(network), "--vnnlib", str(text)).splitlines()
    assert verdict == "violated"
    names, values = zip(*re.findall(r"\((\w+) ([^()]+)\)", "\n".join([first, *rest])), strict=True)
    assert names == ("X_0", "Y_0", "Y_1")
    assert abs(float(values[0])) == pytest.approx(float(values[1]))
    assert float(values[1]) >= 0.9
    text.write_text(tent_property("1.1"))
    assert command(falsify_property, "--onnx", str(network), "--vnnlib", str(text)) == "not found\n"


def test_the_bounds_by_name() -> None:
    """Each is what it is called: on one network their tightness differs as it should."""
    model, rows = small(), torch.eye(3, dtype=torch.float64)
    ends = torch.zeros(1, 1, 2, 2).double(), torch.ones(1, 1, 2, 2).double()
    found: dict[str, float] = {}
    for name in BOUNDS:
        bounds: Bounds = make_bounds(name)
        found[name] = float(bounds(model, *ends, rows).double().sum())
    assert found["crown"] >= found["crown-ibp"]
    assert found["alpha-crown"] >= found["crown"]
    assert found["fast-lin"] != found["crown"]
    assert found["crown"] > found["ibp"] >= found["ibp-exact"]
    assert make_bounds("ibp-exact").keywords == partial(interval_bounds, outward=True).keywords  # type: ignore[attr-defined]
