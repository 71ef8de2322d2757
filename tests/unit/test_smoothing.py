"""The certifier's values, invariances and refusals."""

import copy

import pytest
import torch
from torch import nn

from certify import ABSTAIN, Certificate, Deterministic, Execution, Gaussian, InputError, PerExample, Smoothing, Stream
from certify.binomial import lower_confidence_bound
from certify.smoothing import subject
from certify.voting import BLOCK, BaseClassifier, check_inputs, count_votes, leaders
from tests.classifiers import Threshold, affine

SIGMA = 0.25


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


METHOD = Smoothing(Gaussian(SIGMA), n0=50, n=300, alpha=0.01)


def same(a: Certificate, b: Certificate) -> bool:
    assert a.counts is not None
    assert b.counts is not None
    return (
        torch.equal(a.prediction, b.prediction) and torch.equal(a.radius, b.radius) and torch.equal(a.counts, b.counts)
    )


def test_certificate_states_what_it_is(network: nn.Module, images: torch.Tensor) -> None:
    c = METHOD(network, images, rng=Stream(0))
    assert c.norm == "L2"
    assert c.subject == "g(Gaussian(sigma=0.25))"
    assert c.guarantee == PerExample(0.01)
    assert c.method is METHOD
    assert c.samples.tolist() == [350] * 6
    assert c.counts is not None
    assert c.counts.sum(1).tolist() == [300] * 6
    fields = "n0=50, n=300, alpha=0.01, runner_up=0.0, randomized=False, box=(0.0, 1.0)"
    assert repr(METHOD) == f"Smoothing(noise=Gaussian(sigma=0.25), {fields})"


def test_radius_is_the_formula_in_float64(network: nn.Module, images: torch.Tensor) -> None:
    c = METHOD(network, images, rng=Stream(0))
    assert c.counts is not None
    certified = 0
    for counts, prediction, radius in zip(c.counts, c.prediction, c.radius, strict=True):
        if prediction != ABSTAIN:
            certified += 1
            expected = Gaussian(SIGMA).radius(lower_confidence_bound(int(counts[prediction]), 300, 0.01))
            assert float(radius) == expected  # to the last bit: float32 anywhere would show
        else:
            assert radius == 0
    assert certified


def test_votes_of_a_sure_classifier() -> None:
    c = METHOD(Threshold(100.0).eval(), torch.zeros(2, 1), rng=Stream(0))
    assert c.counts is not None
    assert c.counts.tolist() == [[300, 0], [300, 0]]
    assert c.radius.tolist() == [Gaussian(SIGMA).radius(lower_confidence_bound(300, 300, 0.01))] * 2


def test_even_votes_abstain() -> None:
    c = Smoothing(Gaussian(SIGMA), n0=10, n=1000, alpha=0.001, box=None)(
        Threshold(0.0).eval(), torch.zeros(20, 1), rng=Stream(0)
    )
    assert c.prediction.tolist() == [ABSTAIN] * 20
    assert c.radius.tolist() == [0.0] * 20


def test_counts_do_not_depend_on_batch_or_order(network: nn.Module, images: torch.Tensor) -> None:
    streams = [Stream(5).child(i) for i in range(6)]
    whole = METHOD(network, images, rng=streams)
    order = [4, 1, 5, 0, 3, 2]
    shuffled = METHOD(network, images[order], rng=[streams[i] for i in order])
    assert whole.counts is not None
    assert shuffled.counts is not None
    assert torch.equal(whole.counts[order], shuffled.counts)
    for i in range(6):
        alone = METHOD(network, images[i : i + 1], rng=[streams[i]])
        assert alone.counts is not None
        assert torch.equal(alone.counts[0], whole.counts[i])


@pytest.mark.parametrize("rows", [BLOCK, 3 * BLOCK, 8 * BLOCK])
def test_noise_does_not_depend_on_rows(network: nn.Module, images: torch.Tensor, rows: int) -> None:
    """Away from float ties (this network has none at these draws) counts agree between forward-pass sizes too."""
    base = BaseClassifier(network, images[:1], Execution(rows=rows))
    assert same(METHOD(base, images, rng=Stream(0)), METHOD(network, images, rng=Stream(0)))


def test_draws_need_not_be_equal(network: nn.Module, images: torch.Tensor) -> None:
    base = BaseClassifier(network, images[:1])
    streams = [Stream(0).child(i) for i in range(6)]
    draws = [1, BLOCK - 1, BLOCK, BLOCK + 1, 5, 700]
    counts = count_votes(base, images, Gaussian(SIGMA), streams, draws)
    assert counts.sum(1).tolist() == draws
    assert torch.equal(counts[5], count_votes(base, images[5:], Gaussian(SIGMA), streams[5:], 700)[0])


def test_noise_is_fresh_and_of_the_right_size() -> None:
    seen: list[torch.Tensor] = []

    class Recorder(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.clone())
            return x[:, :2]

    x = torch.full((1, 500), 0.5)
    base = BaseClassifier(Recorder().eval(), x)
    seen.clear()
    count_votes(base, x, Gaussian(0.1), [Stream(0)], 512)
    noise = torch.cat(seen).double() - 0.5
    assert noise.shape == (512, 500)
    assert len(torch.unique(noise[:, 0])) == 512  # no draw is used twice
    assert abs(float(noise.std()) - 0.1) < 6 * 0.1 / (2 * noise.numel()) ** 0.5


def test_the_callers_model_and_the_global_generator_stay_as_they_were(network: nn.Module, images: torch.Tensor) -> None:
    before, state = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    base = BaseClassifier(network, images[:1], Execution("bfloat16"))
    c = METHOD(base, images, rng=Stream(0))
    assert c.subject == "g(Gaussian(sigma=0.25); f in bfloat16)"
    assert torch.equal(state, torch.random.get_rng_state())
    after = network.state_dict()
    assert all(torch.equal(v, after[k]) and v.dtype == after[k].dtype for k, v in before.items())
    assert not any(p.grad is not None for p in network.parameters())


def test_bfloat16_votes_are_those_of_the_rounded_classifier(network: nn.Module, images: torch.Tensor) -> None:
    base = BaseClassifier(network, images[:1], Execution("bfloat16", channels_last=False, rows=BLOCK))
    counts = count_votes(base, images[:1], Gaussian(SIGMA), [Stream(0)], BLOCK)
    noisy = torch.empty(BLOCK, 1, 8, 8)
    Gaussian(SIGMA).perturb(noisy, images[:1], Stream(0).child(0).generator())
    with torch.inference_mode():
        labels = copy.deepcopy(network).bfloat16()(noisy.bfloat16()).argmax(1)
    assert counts[0].tolist() == torch.bincount(labels, minlength=5).tolist()


def test_a_float64_model_votes_in_float64(images: torch.Tensor) -> None:
    model = affine(3, (1, 8, 8)).double()
    c = METHOD(model, images, rng=Stream(0))
    assert c.counts is not None
    assert c.counts.sum() == 6 * 300
    assert c.subject == "g(Gaussian(sigma=0.25); f in float64)"


def test_compile_falls_back(network: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    base = BaseClassifier(network, images[:1], Execution(compiled=True))
    assert base.execution == Execution(compiled=False)
    assert same(METHOD(base, images, rng=Stream(0)), METHOD(network, images, rng=Stream(0)))


def test_two_class_certificate_uses_the_largest_other_count() -> None:
    method = Smoothing(Gaussian(1.0), n=1000, alpha=0.01, runner_up=0.1)
    from certify import upper_confidence_bound

    p_a = lower_confidence_bound(500, 1000, 0.009)
    p_b = upper_confidence_bound(300, 1000, 0.001)
    assert method.radius([200, 500, 300], 1) == Gaussian(1.0).radius(p_a, p_b)
    assert method.radius([200, 500, 300], 1) > 0
    assert Smoothing(Gaussian(1.0), n=1000, alpha=0.01).radius([200, 500, 300], 1) == 0


def test_two_class_reduces_to_binary_when_the_rest_is_one_class() -> None:
    assert Gaussian(0.5).radius(0.9, 0.1) == Gaussian(0.5).radius(0.9)
    assert Gaussian(0.5).radius(0.9, 0.7) == Gaussian(0.5).radius(0.9)  # p_b can never exceed 1 - p_a


def test_leaders_breaks_ties_towards_the_lower_class() -> None:
    label, votes = leaders(torch.tensor([[3, 5, 5, 1], [4, 0, 4, 4]]))
    assert label.tolist() == [[1, 2], [0, 2]]
    assert votes.tolist() == [[5, 5], [4, 4]]


def test_predict_abstains_by_the_exact_test() -> None:
    method = Smoothing(Gaussian(SIGMA), n=20, alpha=0.001, box=None)
    sure = method.predict(Threshold(100.0).eval(), torch.zeros(2, 1), rng=Stream(0))
    even = method.predict(Threshold(0.0).eval(), torch.zeros(50, 1), rng=Stream(0))
    assert sure.tolist() == [0, 0]
    assert even.tolist() == [ABSTAIN] * 50


class Constant(nn.Module):
    """Gives the same logits to every input."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(x.shape[0], *self.logits.shape)


def test_refuses_training_mode(network: nn.Module, images: torch.Tensor) -> None:
    network[1].train()
    with pytest.raises(InputError, match=r"evaluation mode, call model.eval\(\); in training mode: 1"):
        METHOD(network, images, rng=Stream(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_refuses_logits_that_are_not_finite(value: float) -> None:
    with pytest.raises(InputError, match="NaN or infinite logits under noise"):
        METHOD(Constant(torch.tensor([0.0, value])).eval(), torch.zeros(1, 3), rng=Stream(0))


@pytest.mark.parametrize("logits", [torch.zeros(1), torch.zeros(2, 2), torch.tensor(0.0)])
def test_refuses_logits_of_another_shape(logits: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"need logits of shape \(256, classes >= 2\)"):
        METHOD(Constant(logits).eval(), torch.zeros(1, 3), rng=Stream(0))


@pytest.mark.parametrize(
    ("x", "rule"),
    [
        (torch.full((1, 4), 1.5), r"need inputs in \[0, 1\]; got \[1.5, 1.5\]"),
        (torch.full((1, 4), -0.1), r"need inputs in \[0, 1\]"),
        (torch.full((1, 4), float("nan")), "need finite inputs"),
        (torch.zeros(1, 4, dtype=torch.int64), "in floating point; got"),
        (torch.zeros(4), r"need x of shape \(n >= 1, ...\)"),
        (torch.zeros(0, 4), r"need x of shape \(n >= 1, ...\)"),
    ],
)
def test_refuses_inputs(x: torch.Tensor, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        METHOD(affine(3, (4,)), x, rng=Stream(0))


def test_data_that_is_not_pixels_is_welcome_without_a_box() -> None:
    method = Smoothing(Gaussian(SIGMA), n0=10, n=100, alpha=0.01, box=None)
    assert len(method(affine(3, (4,)), torch.full((1, 4), 7.0), rng=Stream(0))) == 1


def test_refuses_another_shape_than_prepared(network: nn.Module, images: torch.Tensor) -> None:
    base = BaseClassifier(network, images[:1])
    with pytest.raises(InputError, match=r"need inputs of shape \(1, 8, 8\); got \(1, 9, 9\)"):
        METHOD(base, torch.zeros(1, 1, 9, 9), rng=Stream(0))


def test_refuses_a_wrong_number_of_streams(network: nn.Module, images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="one stream per example, 6; got 2"):
        METHOD(network, images, rng=[Stream(0), Stream(1)])


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"alpha": 0.0}, "need 0 < alpha < 1; got 0.0"),
        ({"alpha": 1.5}, "need 0 < alpha < 1; got 1.5"),
        ({"n": 0}, "need an integer n >= 1; got 0"),
        ({"n": 10.0}, "need an integer n >= 1; got 10.0"),
        ({"n0": 0}, "need an integer n0 >= 1; got 0"),
        ({"n": 9}, "need n >= 10 votes to certify anything at alpha = 0.001; got 9"),
        ({"runner_up": 1.0}, "need 0 <= runner_up < 1; got 1.0"),
        ({"box": (1.0, 0.0)}, r"need box = \(low, high\)"),
    ],
)
def test_refuses_settings(arguments: dict[str, object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        Smoothing(Gaussian(1.0), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_sigma(sigma: float) -> None:
    with pytest.raises(InputError, match="need a finite sigma > 0; got"):
        Gaussian(sigma)


@pytest.mark.parametrize(("p_a", "p_b"), [(1.1, None), (-0.1, None), (0.5, 2.0), (float("nan"), None)])
def test_refuses_probabilities(p_a: float, p_b: float | None) -> None:
    with pytest.raises(InputError, match="need probabilities"):
        Gaussian(1.0).radius(p_a, p_b)


@pytest.mark.parametrize(
    ("execution", "rule"),
    [({"precision": "int8"}, "need a precision among"), ({"rows": 100}, "positive multiple of 128")],
)
def test_refuses_execution(execution: dict[str, object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        Execution(**execution)  # type: ignore[arg-type]


def test_certificate_refuses_nonsense() -> None:
    good = {
        "prediction": torch.tensor([1, ABSTAIN]),
        "radius": torch.tensor([0.5, 0.0], dtype=torch.float64),
        "samples": torch.tensor([10, 10]),
        "norm": "L2",
        "subject": "f",
        "guarantee": Deterministic(),
        "method": METHOD,
    }
    Certificate(**good)  # type: ignore[arg-type]
    for change, rule in (
        ({"radius": torch.tensor([0.5, 0.1], dtype=torch.float64)}, "an abstention certifies nothing"),
        ({"radius": torch.tensor([0.5, 0.0])}, "need radius of shape"),
        ({"radius": torch.tensor([-0.5, 0.0], dtype=torch.float64)}, "need radius >= 0"),
        ({"radius": torch.tensor([float("nan"), 0.0], dtype=torch.float64)}, "need radius >= 0"),
        ({"samples": torch.tensor([10])}, "need samples of shape"),
    ):
        with pytest.raises(InputError, match=rule):
            Certificate(**{**good, **change})  # type: ignore[arg-type]


def test_certificate_survives_its_records() -> None:
    c = METHOD(affine(3, (4,)), torch.rand(5, 4, generator=torch.Generator().manual_seed(0)), rng=Stream(0))
    again = Certificate.from_record(c.header(), c.records())
    assert same(c, again)
    assert again.guarantee == c.guarantee
    assert again.method == repr(METHOD)
    assert (again.norm, again.subject, again.region) == (c.norm, c.subject, c.region)
    assert torch.equal(again.samples, c.samples)


def test_subject_names_the_precision(images: torch.Tensor, network: nn.Module) -> None:
    assert subject(Gaussian(1.0), BaseClassifier(network, images[:1])) == "g(Gaussian(sigma=1.0))"


def test_refuses_inputs_that_the_model_does_not_take(network: nn.Module) -> None:
    with pytest.raises(InputError, match=r"the model does not take inputs of shape \(3, 9, 9\)"):
        METHOD(network, torch.zeros(1, 3, 9, 9), rng=Stream(0))


def test_an_input_at_a_face_of_the_box_is_in_it() -> None:
    """In float32 the face itself may be beyond the number that the box was given as."""
    face = torch.full((1, 3), 2.8215)
    assert float(face[0, 0]) > 2.8215
    check_inputs(face, (-0.4242, 2.8215))
    with pytest.raises(InputError, match="need inputs in"):
        check_inputs(torch.nextafter(face, torch.tensor(3.0)), (-0.4242, 2.8215))
