"""Beside other libraries: onnxruntime's logits; models and attacks of foolbox and ART, wrapped in both directions."""

import random
import re
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked
from analysis.attacks.pgd import PGD
from analysis.evaluation import evaluate
from analysis.interop import ArtAttack, Flip, FoolboxAttack, from_art, from_foolbox, to_art, to_foolbox
from certify import IBP, Gaussian, InputError, SmoothedClassifier, Stream, Threat
from certify.campaign.attack_rows import AttackResults, AttackRows
from certify.campaign.frames import to_frame
from certify.campaign.onnx import read_onnx
from certify.campaign.results import Published
from certify.campaign.runner import verify
from certify.layers import Normalize
from paper_repro.data import Data
from paper_repro.models import cifar_resnet, deep_defense_convnet, lenet

THREAT = Threat("Linf", 0.1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(channels: int = 3, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conv = (nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        return nn.Sequential(*conv, nn.Flatten(), nn.Linear(64, 5)).eval()


def examples(model: nn.Module, n: int = 6, low: float = 0.0, high: float = 1.0) -> tuple[Tensor, Tensor]:
    """Inputs and the model's own predictions, the first of which is made wrong."""
    x = low + (high - low) * torch.rand(n, 3, 8, 8, generator=seeded())
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    return x, y


def recheck(found: Attacked, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> None:
    """Every success is misclassified, in the box and in the ball, by a measure of its own."""
    assert found.threat == threat
    z = found.adversarial
    with torch.no_grad():
        wrong = model(z).argmax(1) != y
    delta = (z.double() - x.double()).flatten(1)
    size = {"Linf": delta.abs().amax(1), "L2": delta.square().sum(1).sqrt(), "L1": delta.abs().sum(1)}[threat.norm]
    assert wrong[found.success].all()
    assert (size[found.success] <= threat.eps * (1 + 1e-5)).all()
    torch.testing.assert_close(found.distance[found.success], size[found.success], rtol=1e-6, atol=1e-9)
    assert (z >= 0).all()
    assert (z <= 1).all()
    assert torch.isinf(found.distance[~found.success]).all()
    assert torch.equal(z[~found.success], x[~found.success])


# ONNX.


@pytest.mark.parametrize("build", [lenet, deep_defense_convnet, lambda: cifar_resnet(8, side=8)])
def test_logits_of_onnxruntime(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    if find_spec("onnx2torch") is None:
        pytest.skip("onnx2torch is not installed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
    shape = {lenet: (1, 28, 28), deep_defense_convnet: (3, 32, 32)}.get(build, (3, 8, 8))  # type: ignore[call-overload]
    x, path = torch.rand(3, *shape, generator=seeded()), tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own exporter
        names: dict[str, Any] = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
        torch.onnx.export(model, (x,), str(path), dynamo=False, **names)
    (expected,) = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(read_onnx(path)(x), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


# foolbox.


@pytest.fixture
def foolbox() -> Any:
    return pytest.importorskip("foolbox")


PREPROCESSING = [
    None,
    {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "axis": -3},
    {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "axis": -3, "flip_axis": -3},
    {"std": [0.2, 0.3, 0.4], "axis": -3},
    {"mean": 0.5},
]


def as_arrays(preprocessing: dict[str, Any] | None) -> dict[str, Any] | None:
    if preprocessing is None:
        return None
    return {k: np.float32(v) if k in ("mean", "std") else v for k, v in preprocessing.items()}


@pytest.mark.parametrize("preprocessing", PREPROCESSING, ids=lambda p: "-".join(p) if p else "none")
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 255.0)])
def test_from_foolbox(foolbox: Any, preprocessing: dict[str, Any] | None, bounds: tuple[float, float]) -> None:
    theirs = foolbox.PyTorchModel(network(), bounds=(0, 1), device="cpu", preprocessing=as_arrays(preprocessing))
    theirs = theirs.transform_bounds(bounds)
    module, box = from_foolbox(theirs)
    assert box == bounds
    assert not any(m.training for m in module.modules())
    x = torch.rand(4, 3, 8, 8, generator=seeded()) * bounds[1]
    torch.testing.assert_close(module(x), theirs(x), rtol=1e-5, atol=1e-5)
    if preprocessing is None or "flip_axis" not in preprocessing:
        bound = IBP(Threat("Linf", 0.0, box=box)).bounds(module, x)  # of layers with a rule
        torch.testing.assert_close(bound.lower, theirs(x), rtol=1e-4, atol=1e-4)
    else:
        assert type(module) is nn.Sequential
        assert type(module[0]) is Flip


def test_there_and_back_is_the_module_itself(foolbox: Any) -> None:
    model = network()
    theirs = to_foolbox(model, (-1.0, 2.0))
    assert (theirs.bounds.lower, theirs.bounds.upper) == (-1.0, 2.0)
    assert from_foolbox(theirs) == (model, (-1.0, 2.0))
    x = torch.rand(4, 3, 8, 8, generator=seeded())
    assert torch.equal(theirs(x), model(x))


ATTACKS: list[tuple[str, Callable[[Any], Any], Threat]] = [
    ("LinfPGD", lambda fb: fb.attacks.LinfPGD(steps=20), Threat("Linf", 0.1)),
    ("L2PGD", lambda fb: fb.attacks.L2PGD(steps=20), Threat("L2", 1.0)),
    ("L2DeepFool", lambda fb: fb.attacks.L2DeepFoolAttack(), Threat("L2", 2.0)),
    ("L1FMN", lambda fb: fb.attacks.L1FMNAttack(steps=30), Threat("L1", 15.0)),
]


@pytest.mark.parametrize(("make", "threat"), [a[1:] for a in ATTACKS], ids=[a[0] for a in ATTACKS])
def test_foolbox_attacks_as_ours(foolbox: Any, make: Callable[[Any], Any], threat: Threat) -> None:
    model = network()
    x, y = examples(model)
    attack = FoolboxAttack(make(foolbox))
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    found = attack(model, x, y, threat=threat, rng=Stream(0))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    recheck(found, model, x, y, threat)
    assert found.distance[0] == 0
    assert found.success.sum() >= 4
    assert found.forwards[0] == 1
    assert (found.forwards[1:] > 10).all()
    assert found.backwards[0] == 0
    again = attack(model, x, y, threat=threat, rng=Stream(0))
    assert torch.equal(again.adversarial, found.adversarial)
    assert torch.equal(again.backwards, found.backwards)
    assert "at 0x" not in repr(attack)


def test_the_stream_is_what_the_attack_draws(foolbox: Any) -> None:
    model = network()
    x, y = examples(model)
    attack = FoolboxAttack(foolbox.attacks.LinfPGD(steps=1))
    a, b = (attack(model, x, y, threat=THREAT, rng=Stream(0).child(i)).adversarial for i in (0, 1))
    assert not torch.equal(a, b)


def test_costs_of_a_known_attack(foolbox: Any) -> None:
    """20 steps, each a pass and a gradient; foolbox looks at the end itself; and we look before and after."""
    model = network()
    x, y = examples(model)
    found = FoolboxAttack(foolbox.attacks.LinfPGD(steps=20))(model, x, y, threat=THREAT, rng=Stream(0))
    assert found.forwards.tolist() == [1, *[20 + 1 + 2] * 5]
    assert found.backwards.tolist() == [0, *[20] * 5]


class Cheat:
    """Returns what it likes."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change

    def __call__(self, model: Any, x: Tensor, criterion: Any, *, epsilons: float) -> Any:
        return x, self.change(x), torch.ones(len(x), dtype=torch.bool)


@pytest.mark.parametrize("change", [lambda x: x, lambda x: 1 - x, lambda x: x + 0.09, lambda x: (x + 0.2).clamp(0, 1)])
def test_what_an_attack_claims_is_not_believed(foolbox: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Still right, or out of the ball, or out of the box."""
    model = network()
    x, y = examples(model)
    x[:, 0, 0, 0] = 0.95
    with torch.no_grad():
        y = model(x).argmax(1)
    found = FoolboxAttack(Cheat(change))(model, x, y, threat=THREAT, rng=Stream(0))
    assert not found.success.any()
    assert torch.equal(found.adversarial, x)


def test_foolbox_in_a_ladder(foolbox: Any) -> None:
    model = network()
    x, y = examples(model)
    ladder = [PGD(steps=1, step_size=1e-4, random_start=False), FoolboxAttack(foolbox.attacks.LinfPGD(steps=20))]
    result = evaluate(model, x, y, ladder, threat=THREAT, rng=Stream(0))
    first, second = result.rungs
    assert (first.attacked, second.attacked) == (5, 5 - first.broken)
    assert second.broken >= 1
    assert "FoolboxAttack(attack=LinfProjectedGradientDescentAttack(" in second.attack
    assert result.robust_accuracy == (5 - first.broken - second.broken) / 6


def test_the_smoothed_classifier_in_foolbox_and_art(foolbox: Any) -> None:
    pytest.importorskip("art")
    smoothed = SmoothedClassifier(network(), Gaussian(0.25), 16, stream=Stream(0), fresh=False).eval()
    x, y = examples(smoothed)
    with torch.no_grad():
        direct = smoothed(x)
    assert torch.equal(to_foolbox(smoothed)(x), direct)
    np.testing.assert_allclose(to_art(smoothed, (3, 8, 8), 5).predict(x.numpy()), direct.numpy(), rtol=1e-5)
    threat = Threat("L2", 3.0)
    found = FoolboxAttack(foolbox.attacks.L2PGD(steps=10))(smoothed, x, y, threat=threat, rng=Stream(0))
    recheck(found, smoothed, x, y, threat)
    assert found.success.sum() >= 3


# ART.


@pytest.fixture
def art() -> Any:
    pytest.importorskip("art")
    import art.attacks.evasion as evasion

    return evasion


def classifier(model: nn.Module, **more: Any) -> Any:
    from art.estimators.classification import PyTorchClassifier

    fixed = {"loss": nn.CrossEntropyLoss(), "input_shape": (3, 8, 8), "nb_classes": 5, "device_type": "cpu"}
    return PyTorchClassifier(model=model, **fixed, **more)


MEAN, STD = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    "preprocessing",
    [(0.0, 1.0), (0.5, 0.25), (MEAN, STD), (MEAN[:, None, None], STD[:, None, None]), None],
)
def test_from_art(art: Any, preprocessing: Any) -> None:
    theirs = classifier(network(), preprocessing=preprocessing, clip_values=(0.0, 1.0))
    module, box = from_art(theirs)
    assert box == (0.0, 1.0)
    assert not any(m.training for m in module.modules())
    x = torch.rand(4, 3, 8, 8, generator=seeded())
    with torch.no_grad():
        np.testing.assert_allclose(module(x).numpy(), theirs.predict(x.numpy()), rtol=1e-5, atol=1e-6)
    assert from_art(classifier(network()))[1] is None
    clip = (np.zeros((3, 8, 8)), np.ones((3, 8, 8)))
    assert from_art(classifier(network(), clip_values=clip))[1] == (0.0, 1.0)


def test_our_pgd_on_a_wrapped_model_is_that_on_the_bare_one(art: Any, foolbox: Any) -> None:
    inner = network()
    bare = nn.Sequential(Normalize(MEAN.tolist(), STD.tolist()), inner).eval()
    x, y = examples(bare)
    attack = PGD(steps=10)
    expected = attack(bare, x, y, threat=THREAT, rng=Stream(1))
    assert expected.success.sum() >= 4
    wrapped_art = from_art(classifier(inner, preprocessing=(MEAN, STD), clip_values=(0.0, 1.0)))[0]
    preprocessing = {"mean": MEAN, "std": STD, "axis": -3}
    wrapped_foolbox = from_foolbox(foolbox.PyTorchModel(inner, (0, 1), device="cpu", preprocessing=preprocessing))[0]
    for wrapped in (wrapped_art, wrapped_foolbox):
        found = attack(wrapped, x, y, threat=THREAT, rng=Stream(1))
        assert torch.equal(found.adversarial, expected.adversarial)
        assert torch.equal(found.distance, expected.distance)
        assert torch.equal(found.backwards, expected.backwards)


def test_to_art(art: Any) -> None:
    model, x = network(), torch.rand(4, 3, 8, 8, generator=seeded())
    theirs = to_art(model, (3, 8, 8), 5, (-1.0, 2.0))
    assert theirs.clip_values.tolist() == [-1, 2]
    assert theirs.channels_first
    assert theirs.model is model
    assert from_art(theirs) == (model, (-1.0, 2.0))
    assert to_art(model, (3, 8, 8), 5, None).clip_values is None
    with torch.no_grad():
        np.testing.assert_allclose(theirs.predict(x.numpy()), model(x).numpy(), rtol=1e-6)


ART_ATTACKS: list[tuple[str, Callable[[Any], Callable[[Any, Threat], Any]], Threat]] = [
    (
        "ProjectedGradientDescent",
        lambda art: (
            lambda c, t: art.ProjectedGradientDescent(
                c, norm=np.inf, eps=t.eps, eps_step=t.eps / 5, max_iter=20, num_random_init=1, verbose=False
            )
        ),
        Threat("Linf", 0.1),
    ),
    (
        "FastGradientMethod",
        lambda art: lambda c, t: art.FastGradientMethod(c, norm=2, eps=t.eps),
        Threat("L2", 2.0),
    ),
]


@pytest.mark.parametrize(("make", "threat"), [a[1:] for a in ART_ATTACKS], ids=[a[0] for a in ART_ATTACKS])
def test_art_attacks_as_ours(art: Any, make: Any, threat: Threat) -> None:
    model = network()
    x, y = examples(model)
    attack = ArtAttack(make(art), "art 1.20, as in this test")
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = attack(model, x, y, threat=threat, rng=Stream(0))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert not any(m.training for m in model.modules())
    recheck(found, model, x, y, threat)
    assert found.distance[0] == 0
    assert found.success.sum() >= 4
    assert found.backwards[0] == 0
    assert (found.backwards[1:] >= 1).all()
    again = attack(model, x, y, threat=threat, rng=Stream(0))
    assert torch.equal(again.adversarial, found.adversarial)
    assert repr(attack) == "ArtAttack(name='art 1.20, as in this test')"


# Models as RobustBench has them; the package itself does not import without torchvision, and is not needed.


class RobustBenchStyle(nn.Module):
    """A module on [0, 1] that normalises in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mu", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("sigma", torch.tensor(STD).view(1, 3, 1, 1))
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((x - self.mu) / self.sigma)


def test_the_convention_of_robustbench(foolbox: Any) -> None:
    model = RobustBenchStyle().eval()
    x, y = examples(model)
    attacks = (PGD(steps=20), FoolboxAttack(foolbox.attacks.LinfPGD(steps=20)))
    ours, theirs = (attack(model, x, y, threat=THREAT, rng=Stream(0)) for attack in attacks)
    for found in (ours, theirs):
        recheck(found, model, x, y, THREAT)
    assert torch.equal(ours.success, theirs.success)
    assert ours.success.any()


# What is refused.


def test_foolbox_refuses(foolbox: Any) -> None:
    model = network()
    x, y = examples(model)
    attack = FoolboxAttack(foolbox.attacks.LinfPGD(steps=1))
    with pytest.raises(InputError, match="need a threat in the attack's norm, order inf; got L2"):
        attack(model, x, y, threat=Threat("L2", 1.0), rng=Stream(0))
    with pytest.raises(InputError, match="need a threat with a box"):
        attack(model, x, y, threat=Threat("Linf", 1.0, box=None), rng=Stream(0))
    with pytest.raises(InputError, match=re.escape("need a foolbox.PyTorchModel; got Sequential")):
        from_foolbox(model)
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        to_foolbox(network().train())
    for given, message in (
        ({"mean": np.zeros(8, np.float32)}, "or (channels, 1, 1); got shape (8,)"),
        ({"mean": np.zeros((3, 8, 8), np.float32)}, "or (channels, 1, 1); got shape (3, 8, 8)"),
        ({"std": np.float32(-1)}, "need std > 0; got -1"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            from_foolbox(foolbox.PyTorchModel(model, (0, 1), device="cpu", preprocessing=given))


def test_art_refuses(art: Any) -> None:
    from art.defences.postprocessor import Rounded
    from art.defences.preprocessor import SpatialSmoothing
    from art.preprocessing.standardisation_mean_std import StandardisationMeanStdPyTorch

    model = network()
    x, y = examples(model)
    assert (
        len(from_art(classifier(model, preprocessing=StandardisationMeanStdPyTorch(0.5, 0.5, device_type="cpu")))) == 2
    )
    with pytest.raises(InputError, match="need an ART PyTorchClassifier; got Sequential"):
        from_art(model)
    with pytest.raises(InputError, match="without preprocessing or postprocessing defences"):
        from_art(classifier(model, preprocessing_defences=SpatialSmoothing(channels_first=True)))
    with pytest.raises(InputError, match="without preprocessing or postprocessing defences"):
        from_art(classifier(model, postprocessing_defences=Rounded()))
    with pytest.raises(InputError, match="need preprocessing by mean and std; got SpatialSmoothing"):
        from_art(classifier(model, preprocessing=SpatialSmoothing(channels_first=True)))
    with pytest.raises(InputError, match="need a classifier with channels first"):
        from_art(classifier(model, channels_first=False))
    ends = np.zeros((3, 8, 8)), np.linspace(1, 2, 192).reshape(3, 8, 8)
    with pytest.raises(InputError, match="need clip values that are the same for every feature"):
        from_art(classifier(model, clip_values=ends))
    with pytest.raises(InputError, match="need a model in evaluation mode"):
        to_art(network().train(), (3, 8, 8), 5)
    with pytest.raises(InputError, match="need a name for the attack, its provenance; got ''"):
        ArtAttack(lambda c, t: None, "")
    attack = ArtAttack(lambda c, t: art.FastGradientMethod(c, norm=2, eps=t.eps), "FGM")
    with pytest.raises(InputError, match="need a threat in the attack's norm, order 2; got Linf"):
        attack(model, x, y, threat=THREAT, rng=Stream(0))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("foolbox", lambda m: to_foolbox(m)),
        ("foolbox", lambda m: from_foolbox(m)),
        ("art.estimators.classification", lambda m: to_art(m, (3, 8, 8), 5)),
        ("art.estimators.classification", lambda m: from_art(m)),
    ],
)
def test_how_to_install_them(name: str, call: Callable[[nn.Module], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    message = f"this needs {name.partition('.')[0]}: pip install 'robust-radius[interop]'"
    with pytest.raises(InputError, match=re.escape(message)):
        call(network())


# pandas.


def test_frames(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    model = network()
    x, y = examples(model)
    method = IBP(Threat("Linf", 1e-4))
    certificate = method(model, x)
    frame = to_frame(certificate)
    assert frame["radius"].tolist() == certificate.radius.tolist()
    assert frame["prediction"].tolist() == certificate.prediction.tolist()
    assert frame["radius"].max() == 1e-4
    assert frame.attrs == certificate.header()
    results = verify(tmp_path / "s.sqlite", method, model, Data(x, y, torch.arange(6) + 40), names=("m:net", "d:data"))
    frame = to_frame(results)
    assert frame["example"].tolist() == list(range(40, 46))
    assert frame["label"].tolist() == y.tolist()
    assert frame["radius"].tolist() == certificate.radius.tolist()
    assert frame["correct"].tolist() == (certificate.prediction == y).tolist()
    assert not frame["correct"][0]
    assert (frame["seconds"] > 0).all()
    assert "w" not in frame
    assert frame.attrs["settings"]["method"] == repr(method)
    assert frame.attrs["norm"] == "Linf"


def test_frames_of_attacks_and_logs() -> None:
    pytest.importorskip("pandas")
    ids, label, prediction = np.arange(3), np.array([1, 2, 3]), np.array([1, 2, 0])
    distance, broken_by, costs = np.array([0.5, np.inf, 0.0]), np.array([1, -1, -1]), np.array([[1, 2], [3, 4], [0, 0]])
    rows = AttackRows(ids, label, prediction, distance, broken_by, costs, 10 * costs, np.ones(3))
    frame = to_frame(AttackResults({"model": "m:net"}, rows))
    assert frame["distance"].tolist() == distance.tolist()
    assert frame["forwards"].tolist() == [3, 7, 0]
    assert frame["backwards"].tolist() == [30, 70, 0]
    assert frame["robust"].tolist() == [False, True, False]
    assert frame["correct"].tolist() == [True, True, False]
    assert frame.attrs == {"name": "net under attack", "settings": {"model": "m:net"}}
    radius, correct = np.array([0.5, 0.0, 0.25]), np.array([True, False, False])
    frame = to_frame(Published("log", ids, label, prediction, radius, correct, np.zeros(3)))
    assert frame["radius"].tolist() == radius.tolist()
    assert frame["correct"].tolist() == correct.tolist()
    assert frame.attrs == {"name": "log"}


def test_frames_need_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=re.escape("data frames need pandas: pip install 'robust-radius[interop]'")):
        to_frame(IBP(THREAT)(network(), torch.rand(1, 3, 8, 8, generator=seeded())))
