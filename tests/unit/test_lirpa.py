"""Linear bounds: exact on affine networks and on one ReLU by hand; what is refused; and auto_LiRPA's repairs."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import certify.lirpa
from certify import ABSTAIN, Deterministic, InputError, Threat, UnsupportedModule
from certify.layers import Normalize, Residual
from certify.lirpa import CROWN
from certify.lirpa_repairs import ABSENT, auto_lirpa, repair_members, repair_torch, stand_ins
from certify.threat import Box, Norm

KINDS: dict[str, dict[str, Any]] = {
    "adaptive": {},
    "fast_lin": {"slopes": "fast_lin"},
    "ibp": {"intermediate": "ibp"},
    "optimized": {"slopes": "optimized", "steps": 10},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def affine(std: list[float]) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A normaliser and a linear layer over (2, 3, 3), with the weights and bias of the affine map they make."""
    linear = nn.Linear(18, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(4, 18, generator=seeded()))
        linear.bias.copy_(torch.randn(4, generator=seeded(1)))
    model = nn.Sequential(Normalize([0.4, 0.6], std), nn.Flatten(), linear).eval()
    scale = torch.tensor(std).repeat_interleave(9)
    weight = (linear.weight / scale).detach().double()
    shift = torch.tensor([0.4, 0.6]).repeat_interleave(9).double()
    return model, weight, (linear.bias.detach().double() - weight @ shift)


@pytest.mark.parametrize("std", [[0.5, 0.5], [0.2, 0.7]])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("norm", "box"), [("Linf", None), ("Linf", (0.0, 1.0)), ("L2", None), ("L1", (0.0, 1.0))])
def test_exact_on_an_affine_network(norm: Norm, box: Box, kind: str, std: list[float]) -> None:
    """min over the ball of (w_y - w_k) z + b_y - b_k is the value at x less eps times the dual norm."""
    model, weight, bias = affine(std)
    x, eps = torch.rand(5, 2, 3, 3, generator=seeded(2)), torch.tensor([0.0, 0.05, 0.1, 0.3, 0.8])
    y = torch.tensor([0, 1, 2, 3, 0])
    rows, offset = weight[y][:, None] - weight, bias[y][:, None] - bias
    flat, radius = x.flatten(1).double(), eps.double()[:, None]
    if norm == "Linf":
        low, high = (
            (flat - radius, flat + radius) if box is None else ((flat - radius).clamp(0), (flat + radius).clamp(max=1))
        )
        change = torch.minimum(rows * low[:, None], rows * high[:, None]).sum(2)
    else:
        dual = rows.norm(dim=2) if norm == "L2" else rows.abs().amax(2)
        change = torch.einsum("nkd,nd->nk", rows, flat) - radius * dual
    found = CROWN(Threat(norm, 1.0, box=box), **KINDS[kind]).margins(model, x, y, eps)
    torch.testing.assert_close(found.double(), change + offset, rtol=1e-5, atol=1e-5)
    assert (found[torch.arange(5), y] == 0).all()


def one_relu(sign: float) -> nn.Sequential:
    """Logits (sign * relu(x), 0): the margin of class 0 is sign * relu(x)."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), ([[1.0]], [0.0], [[sign], [0.0]], [0.0, 0.0]), strict=True):
            parameter.copy_(torch.tensor(value))
    return model


@pytest.mark.parametrize(
    ("sign", "center", "kind", "lower"),
    [
        # On [-1/4, 3/4] the line above is (x + 1/4) * 3/4, at most 3/4 there.
        (-1.0, 0.25, "adaptive", -0.75),
        (-1.0, 0.25, "fast_lin", -0.75),
        # Below: slope 1 because 3/4 > 1/4, at least -1/4; slope 3/4, at least -3/16; slope 0 at best.
        (1.0, 0.25, "adaptive", -0.25),
        (1.0, 0.25, "ibp", -0.25),
        (1.0, 0.25, "fast_lin", -0.1875),
        (1.0, 0.25, "optimized", 0.0),
        # On [-3/4, 1/4] the smaller area is below slope 0; slope 1/4 gives -3/16.
        (1.0, -0.25, "adaptive", 0.0),
        (1.0, -0.25, "fast_lin", -0.1875),
        # Stable units are exact.
        (1.0, 0.75, "fast_lin", 0.25),
        (1.0, -0.75, "adaptive", 0.0),
    ],
)
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_one_relu_by_hand(sign: float, center: float, kind: str, lower: float, norm: Norm) -> None:
    """In one dimension the three balls agree."""
    method = CROWN(Threat(norm, 0.5, box=None), **KINDS[kind])
    found = method.margins(one_relu(sign), torch.tensor([[center]]), torch.tensor([0]))
    assert found[0].tolist() == [0.0, pytest.approx(lower, abs=1e-6)]


@pytest.mark.parametrize(("norm", "dual"), [("L2", 5.0), ("L1", 4.0)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_convolution_has_its_kernels_dual_norm(kind: str, norm: Norm, dual: float) -> None:
    """-relu(3 a + 4 b - 1) at a = b = 0.1, where the unit is -0.3: the line above it ends at -0.3 + eps * dual."""
    model = nn.Sequential(nn.Conv2d(2, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        values = ([[[[3.0]], [[4.0]]]], [-1.0], [[-1.0], [0.0]], [0.0, 0.0])
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(value))
    method = CROWN(Threat(norm, 0.1), **KINDS[kind])
    found = method.margins(model, torch.full((1, 2, 1, 1), 0.1), torch.tensor([0]))
    assert float(found[0, 1]) == pytest.approx(-(-0.3 + 0.1 * dual), abs=1e-6)


def test_the_certificate() -> None:
    """Class 0 wins by x - 1/2 for x in [0, 1]: distances 0.5, 0.25 and 0.1 from the boundary, and 0.2 beyond it."""
    model = nn.Sequential(nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[0].bias.copy_(torch.tensor([-0.5, 0.0]))
    x = torch.tensor([[1.0], [0.75], [0.625], [0.125]])
    for norm, region in (("Linf", "box"), ("L2", "ball"), ("L1", "ball")):
        method = CROWN(Threat(norm, 0.25))
        c = method(model, x)
        # At 0.75 the worst margin is 0, a tie: not verified.
        assert c.prediction.tolist() == [0, ABSTAIN, ABSTAIN, 1]
        assert c.radius.tolist() == [0.25, 0.0, 0.0, 0.25]
        assert (c.norm, c.region, c.subject, c.guarantee) == (norm, region, "f", Deterministic())
        assert c.method == method
        assert c.arithmetic == "float32, rounding not accounted for"
        assert c.samples.tolist() == [0, 0, 0, 0]
    assert CROWN(Threat("Linf", 0.1))(model, x).radius.tolist() == [0.1, 0.1, 0.1, 0.1]  # not float32's 0.1
    assert CROWN(Threat("Linf", 0.25, box=None))(model, x).region == "ball"
    # The box cuts the ball: at 0.125 inputs below 0 do not count, and none are above 0.5 within 0.25.
    assert CROWN(Threat("Linf", 0.25))(model, x).prediction[3] == 1


def small(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            Normalize([0.5], [0.25]), nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
        ).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_batch_is_its_examples(norm: Norm, kind: str) -> None:
    model, x = small(), torch.rand(5, 1, 4, 4, generator=seeded())
    y, eps = model(x).argmax(1), torch.tensor([0.01, 0.02, 0.05, 0.1, 0.2])
    together = CROWN(Threat(norm, 0.3), **KINDS[kind]).margins(model, x, y, eps)
    parts = CROWN(Threat(norm, 0.3), batch=2, **KINDS[kind]).margins(model, x, y, eps)
    torch.testing.assert_close(parts, together, rtol=1e-5, atol=1e-5)
    for i in (1, 4):
        alone = CROWN(Threat(norm, float(eps[i])), **KINDS[kind]).margins(model, x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["adaptive", "ibp"])
def test_the_layout_of_the_weights_changes_nothing(kind: str) -> None:
    torch.manual_seed(0)
    pooled = (nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU())
    model = nn.Sequential(*pooled, nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    x, y, method = torch.rand(2, 1, 14, 14, generator=seeded()), torch.tensor([0, 1]), CROWN(Threat("Linf", 0.02))
    method = replace(method, **KINDS[kind])
    contiguous = method.margins(model, x, y)
    last = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(method.margins(last, x, y), contiguous, rtol=0, atol=1e-6)


def test_the_caller_keeps_everything() -> None:
    model, x = small(), torch.rand(3, 1, 4, 4, generator=seeded())
    model[4].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    layers, grads = list(model.modules()), [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    for kind in KINDS.values():
        with torch.inference_mode():
            CROWN(Threat("L2", 0.1), **kind)(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(model.modules()) == layers
    assert [p.requires_grad for p in model.parameters()] == grads
    assert not any(m.training for m in model.modules())


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    model, x = small(), torch.rand(3, 1, 4, 4, generator=seeded())
    CROWN(Threat("Linf", 0.1), slopes="optimized", steps=30)(model, x)
    with pytest.raises(UnsupportedModule):
        CROWN(Threat("Linf", 0.1))(nn.Sequential(model, nn.GELU()).eval(), x)
    assert capfd.readouterr() == ("", "")


def test_layers_that_do_nothing_are_left_out() -> None:
    inner, x = small(), torch.rand(3, 1, 4, 4, generator=seeded())
    wrapped = nn.Sequential(
        nn.Identity(), nn.Dropout(0.5), nn.Sequential(*inner[:3], nn.Dropout2d()), *inner[3:]
    ).eval()
    for norm in ("Linf", "L2"):
        method, y = CROWN(Threat(norm, 0.1)), inner(x).argmax(1)
        assert torch.equal(method.margins(wrapped, x, y), method.margins(inner, x, y))


def test_overflow_is_not_verified() -> None:
    model = nn.Sequential(nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3e38], [-3e38]]))
        model[0].bias.zero_()
    assert CROWN(Threat("Linf", 1e38, box=None))(model, torch.ones(1, 1)).prediction.tolist() == [ABSTAIN]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threat": Threat("L0", 1)}, "need a threat in Linf, L2 or L1; got L0"),
        ({"slopes": "steep"}, "need slopes among adaptive, fast_lin, optimized; got 'steep'"),
        ({"intermediate": "lp"}, "need intermediate among crown, ibp; got 'lp'"),
        (
            {"slopes": "optimized", "intermediate": "ibp"},
            "need intermediate = 'crown' with optimized slopes; got 'ibp'",
        ),
        ({"steps": 0}, "need an integer steps >= 1; got 0"),
        ({"batch": 0}, "need an integer batch >= 1; got 0"),
    ],
)
def test_options_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        CROWN(**{"threat": Threat("Linf", 0.1), **fields})


def test_misuse_is_refused() -> None:
    method, x = CROWN(Threat("Linf", 0.1)), torch.rand(2, 1, 4, 4, generator=seeded())
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        method(small().train(), x)
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        method.margins(small().train(), x, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="need inputs in"):
        method(small(), x + 1)


class Branch(nn.Module):
    """Another function on each side of a threshold."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Exponential(nn.Module):
    """An operation that auto_LiRPA has a rule for, and we have not tested."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


def tail(features: int) -> tuple[nn.Module, ...]:
    return nn.Flatten(), nn.Linear(features, 3)


UNSUPPORTED: list[tuple[str, Callable[[], tuple[nn.Module, ...]], Norm, dict[str, Any], str]] = [
    ("gelu", lambda: (nn.GELU(), *tail(32)), "Linf", {}, "auto_LiRPA has no rule for Erf; need a network of Input,"),
    ("softmax", lambda: (*tail(32), nn.Softmax(1)), "Linf", {}, "the linear bounds for Div are not sound"),
    (
        "exp",
        lambda: (Exponential(), *tail(32)),
        "Linf",
        {},
        "no linear bounds for Exp; need a network of Input, Flatten",
    ),
    ("branch", lambda: (Branch(), *tail(32)), "Linf", {}, "need a network whose graph does not depend on values"),
    ("overlapping", lambda: (nn.Conv2d(2, 2, 1), nn.MaxPool2d(2, 1), *tail(18)), "Linf", {}, "MaxPool are not sound"),
    ("remainder", lambda: (nn.Conv2d(2, 2, 1), nn.MaxPool2d(3), *tail(2)), "Linf", {}, "MaxPool are not sound"),
    ("padded", lambda: (nn.Conv2d(2, 2, 1), nn.AvgPool2d(2, 2, 1), *tail(18)), "Linf", {}, "AveragePool are not sound"),
    ("stride", lambda: (nn.Conv2d(2, 2, 1), nn.AvgPool2d(1, 2), *tail(8)), "Linf", {}, "AveragePool are not sound"),
    ("steep", lambda: (nn.Conv2d(2, 2, 1), nn.LeakyReLU(1.5), *tail(32)), "Linf", {}, "LeakyRelu are not sound"),
    ("falling", lambda: (nn.Conv2d(2, 2, 1), nn.LeakyReLU(-0.5), *tail(32)), "Linf", {}, "LeakyRelu are not sound"),
    (
        "pool, optimised",
        lambda: (nn.Conv2d(2, 2, 1), nn.MaxPool2d(2), *tail(8)),
        "Linf",
        {"slopes": "optimized"},
        "auto_LiRPA cannot optimise slopes through MaxPool; need slopes = 'adaptive'",
    ),
    (
        "relu first",
        lambda: (nn.ReLU(), *tail(32)),
        "L2",
        {},
        "convolution first for an L2 ball; got Relu (make certify",
    ),
    (
        "pool first",
        lambda: (nn.AvgPool2d(2), *tail(8)),
        "L1",
        {},
        "or a convolution first for an L1 ball; got AveragePool",
    ),
    (
        "bn first",
        lambda: (nn.BatchNorm2d(2), *tail(32)),
        "L2",
        {},
        "convolution first for an L2 ball; got BatchNormalization",
    ),
    (
        "normalised twice",
        lambda: (Normalize([0.5], [0.5]), Normalize([0.5], [0.5]), *tail(32)),
        "L2",
        {},
        "convolution first for an L2 ball; got Sub",
    ),
    (
        "residual first",
        lambda: (Residual(nn.Conv2d(2, 2, 1), nn.Identity()), *tail(32)),
        "L2",
        {},
        "convolution first for an L2 ball; got Add",
    ),
]


@pytest.mark.parametrize(
    ("layers", "norm", "options", "message"), [c[1:] for c in UNSUPPORTED], ids=[c[0] for c in UNSUPPORTED]
)
def test_what_has_no_sound_rule_is_refused(
    layers: Callable[[], tuple[nn.Module, ...]], norm: Norm, options: dict[str, Any], message: str
) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(*layers()).eval()
    with pytest.raises(UnsupportedModule, match=re.escape(message)):
        CROWN(Threat(norm, 0.1), **options)(model, torch.rand(2, 2, 4, 4, generator=seeded()))


def test_another_function_in_the_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of a network on the way to the graph is held against the network itself."""
    x = torch.rand(2, 1, 4, 4, generator=seeded())
    normalize, rest = certify.lirpa._without_normalizer(small().requires_grad_(False))
    monkeypatch.setattr(certify.lirpa, "_without_normalizer", lambda model: (normalize, rest[:2].append(rest[2:])))
    CROWN(Threat("Linf", 0.1))(small(), x)
    monkeypatch.setattr(certify.lirpa, "_without_normalizer", lambda model: (normalize, rest[:1].append(rest[2:])))
    with pytest.raises(UnsupportedModule, match="auto_LiRPA parsed another function than the network computes"):
        CROWN(Threat("Linf", 0.1))(small(), x)


# The repairs.


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_it_is_imported_late_and_leaves_no_trace() -> None:
    """In a fresh process: certify alone does not import it; its import changes no filter, no logger, no module."""
    code = f"""
import sys, warnings, logging
import certify, certify.lirpa, certify.verified_radius
assert "auto_LiRPA" not in sys.modules
filters, handlers, depth = warnings.filters[:], logging.root.handlers[:], sys.getrecursionlimit()
absent = [name for name in {list(ABSENT)!r} if name not in sys.modules]
from certify.lirpa_repairs import auto_lirpa
assert auto_lirpa() is sys.modules["auto_LiRPA"] is auto_lirpa()
assert warnings.filters[:] == filters and logging.root.handlers[:] == handlers
assert sys.getrecursionlimit() == depth
for name in absent:
    module = sys.modules.get(name)
    assert module is None or getattr(module, "__spec__", None) is not None, name
"""
    assert run(code) == ""


def test_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    with pytest.raises(ImportError, match="not installed: pip install --no-deps auto-LiRPA"):
        auto_lirpa()
    method = CROWN(Threat("Linf", 0.1))  # a configuration needs no package
    with pytest.raises(ImportError, match="verification by linear bounds needs auto_LiRPA"):
        method(small(), torch.rand(1, 1, 4, 4, generator=seeded()))


def test_what_is_missing_is_put_in_place_for_the_import_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    present = ModuleType("tqdm")
    monkeypatch.setitem(sys.modules, "tqdm", present)
    monkeypatch.delitem(sys.modules, "appdirs", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with stand_ins():
        assert sys.modules["tqdm"] is present  # what is there stays
        assert sys.modules["appdirs"].user_data_dir("auto_LiRPA") == "."
    assert sys.modules["tqdm"] is present
    assert "appdirs" not in sys.modules


def test_what_torch_has_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.onnx.symbolic_helper as helper

    def own(*args: Any) -> None:
        """A newer torch's own."""

    repair_torch()
    item = torch._C.Node.__getitem__
    monkeypatch.setattr(helper, "_set_opset_version", own)
    repair_torch()
    assert helper._set_opset_version is own
    assert torch._C.Node.__getitem__ is item

    class Newer(nn.Module):
        def _named_members(self, *args: Any, remove_duplicate: bool = True) -> None:
            """Takes the argument."""

    before = Newer._named_members
    repair_members(Newer)
    assert Newer._named_members is before

    class Older(nn.Module):
        def _named_members(self, get_members_fn: Any, prefix: str = "", recurse: bool = True) -> Any:
            return nn.Module._named_members(self, get_members_fn, prefix, recurse)

    older = Older()
    older.weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(TypeError, match="remove_duplicate"):
        list(older.parameters())
    repair_members(Older)
    assert [name for name, _ in older.named_parameters()] == ["weight"]
