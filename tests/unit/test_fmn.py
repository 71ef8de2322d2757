"""FMN on affine classifiers, whose nearest misclassified input is known, and on a small network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.attacks.fmn import FMN
from certify import InputError, Stream, Threat
from certify.threat import Norm
from tests.unit.test_apgd import check_successes, distance, example, network, one_rival

NORMS: list[Norm] = ["Linf", "L2", "L1"]
FAR = 1e3
# Distances are several units here, not the fraction of a pixel's range that the default step is for.
ATTACK = FMN(step_size=5.0)


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(6,), (2, 3, 3), (1, 8, 8)])
def test_within_one_percent_of_the_nearest(shape: tuple[int, ...], norm: Norm, n: int) -> None:
    # One rival: among several, a local search may settle on one that is not the nearest.
    model, x, y = one_rival(shape, n)
    radius = distance(model, x, norm)
    found = ATTACK(model, x, y, threat=Threat(norm, FAR, box=None), rng=Stream(0))
    assert found.success.all()
    assert (found.distance >= radius * (1 - 1e-5)).all()
    assert (found.distance <= radius * 1.01).all(), found.distance / radius


@pytest.mark.parametrize("norm", NORMS)
def test_the_budget_is_a_cap(norm: Norm) -> None:
    model, x, y = one_rival((2, 3, 3), 4)
    radius = distance(model, x, norm)
    for i in range(4):
        for factor, success in ((1.01, True), (0.99, False)):
            threat = Threat(norm, float(radius[i]) * factor, box=None)
            found = ATTACK(model, x[i : i + 1], y[i : i + 1], threat=threat, rng=Stream(0))
            assert found.success.tolist() == [success], (i, factor)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(NORMS),
    eps=st.sampled_from([0.0, 0.02, 0.5, 50.0]),
    box=st.sampled_from([(0.0, 1.0), None]),
)
def test_successes_are_real(seed: int, norm: Norm, eps: float, box: tuple[float, float] | None) -> None:
    model, threat = network(seed), Threat(norm, eps, box)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(5, 1, 6, 6, generator=generator), torch.randint(5, (5,), generator=generator)
    y[:3] = model(x).argmax(1)[:3]
    state = torch.get_rng_state()
    result = FMN(steps=15)(model, x, y, threat=threat, rng=Stream(seed))
    check_successes(result, model, x, y, threat)
    assert (result.distance[model(x).argmax(1) != y] == 0).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_query_counts() -> None:
    model, x, y = example((6,), 4)
    y[0] = (y[0] + 1) % 4
    found = FMN(steps=9)(model, x, y, threat=Threat("L2", FAR, box=None), rng=Stream(0))
    assert found.forwards.tolist() == [1, 10, 10, 10]  # nine gradients, the first of them at x, and the last point
    assert found.backwards.tolist() == [1, 9, 9, 9]
    assert found.distance[0] == 0
    assert found.loss is not None
    assert found.loss.isnan().sum(1).tolist() == [8, 0, 0, 0]


def test_the_stream_does_not_matter_nor_does_the_batch() -> None:
    model, x, y = example((2, 3, 3), 8)
    threat = Threat("L2", FAR, box=None)
    a, b = (FMN(steps=50)(model, x, y, threat=threat, rng=Stream(seed)) for seed in (0, 1))
    assert torch.equal(a.adversarial, b.adversarial)
    few = FMN(steps=50)(model, x[:3], y[:3], threat=threat, rng=Stream(0))
    assert torch.allclose(few.distance, a.distance[:3], rtol=1e-2)


def test_an_input_on_the_boundary_is_left_behind() -> None:
    """Logits tie at x and the label wins the tie: the search must not stay there."""
    model, x, _ = example((6,), 1)
    with torch.no_grad():
        model.linear.weight[1:] = -model.linear.weight[0]
        model.linear.bias.zero_()
    x = torch.zeros_like(x)
    found = FMN()(model, x, torch.zeros(1, dtype=torch.int64), threat=Threat("L2", 1.0, box=None), rng=Stream(0))
    assert found.success.all()
    assert found.distance.item() < 1e-3


def test_refusals() -> None:
    for fields, message in (
        ({"steps": 0}, "need an integer steps >= 1; got 0"),
        ({"step_size": 0.0}, "need a finite step_size > 0; got 0.0"),
        ({"shrink": 1.0}, "need 0 < final_shrink <= shrink < 1; got 0.001, 1.0"),
        ({"final_shrink": 0.1}, "need 0 < final_shrink <= shrink < 1; got 0.1, 0.05"),
    ):
        with pytest.raises(InputError, match=message):
            FMN(**fields)
    model, x, y = example((6,), 2)
    with pytest.raises(InputError, match="need a threat in Linf, L2 or L1 for FMN; got L0"):
        FMN()(model, x, y, threat=Threat("L0", 1, None), rng=Stream(0))
