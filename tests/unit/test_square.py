"""Square attack on affine classifiers, where the optimum is known, and on a small network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.attacks.square import Square, share_of_pixels
from certify import InputError, Stream, Threat
from certify.threat import Norm
from tests.unit.test_apgd import check_successes, distance, example, network, one_rival

SHAPES = [(1, 5, 5), (3, 4, 4), (2, 3, 6)]


@pytest.mark.parametrize("n", [1, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_linf_success_begins_at_the_distance(shape: tuple[int, ...], n: int) -> None:
    model, x, y = one_rival(shape, n)
    radius = distance(model, x, "Linf")
    for i in range(0, n, 3):
        for factor, success in ((1.01, True), (0.99, False)):
            threat = Threat("Linf", float(radius[i]) * factor, box=None)
            found = Square(queries=800)(model, x[i : i + 1], y[i : i + 1], threat=threat, rng=Stream(0))
            assert found.success.tolist() == [success], (i, factor)
    # A batch in which some can be broken.
    eps = float(radius.median()) * 1.01
    found = Square(queries=800)(model, x, y, threat=Threat("Linf", eps, box=None), rng=Stream(0))
    assert torch.equal(found.success, radius <= eps)


@pytest.mark.parametrize("shape", SHAPES)
def test_l2_success_begins_no_sooner(shape: tuple[int, ...]) -> None:
    """Patches of 3 x 3 pixels are no basis of the space: a random search stays short of the optimum in L2."""
    model, x, y = one_rival(shape, 2)
    radius = distance(model, x, "L2")
    for i in range(2):
        for factor, success in ((2.5, True), (0.99, False)):
            threat = Threat("L2", float(radius[i]) * factor, box=None)
            found = Square(queries=500)(model, x[i : i + 1], y[i : i + 1], threat=threat, rng=Stream(0))
            assert found.success.tolist() == [success], (i, factor)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["Linf", "L2"]),
    eps=st.sampled_from([0.0, 8 / 255, 0.3, 2.0]),
    box=st.sampled_from([(0.0, 1.0), None]),
    shape=st.sampled_from([(1, 1, 1), (1, 2, 3), (1, 6, 6), (3, 5, 8), (2, 11, 7)]),
)
def test_successes_are_real(
    seed: int, norm: Norm, eps: float, box: tuple[float, float] | None, shape: tuple[int, ...]
) -> None:
    model, threat = network(seed, shape), Threat(norm, eps, box)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(5, *shape, generator=generator), torch.randint(5, (5,), generator=generator)
    y[:3] = model(x).argmax(1)[:3]
    state = torch.get_rng_state()
    result = Square(queries=30)(model, x, y, threat=threat, rng=Stream(seed))
    check_successes(result, model, x, y, threat)
    assert torch.equal(torch.get_rng_state(), state)
    assert (result.backwards == 0).all()
    assert result.loss is not None
    rising = result.loss.nan_to_num(torch.inf).diff(dim=1)
    assert not (rising < 0).any()  # the best point never gets worse


def test_query_counts() -> None:
    model, x, y = example((1, 5, 5), 4)
    y[0] = (y[0] + 1) % 4
    for norm in ("Linf", "L2"):
        found = Square(queries=9)(model, x, y, threat=Threat(norm, 1e-4, box=None), rng=Stream(0))
        assert found.forwards.tolist() == [1, 10, 10, 10]
        large = Square(queries=200)(model, x, y, threat=Threat(norm, 50.0, box=None), rng=Stream(0))
        assert large.success.all()
        assert (large.forwards < 201).all()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_same_stream_gives_the_same_result_in_any_batch(norm: Norm) -> None:
    model, x, y = example((2, 6, 6), 8)
    threat = Threat(norm, float(distance(model, x, norm).median()) * 1.5, box=None)
    a, b = (Square(queries=150)(model, x, y, threat=threat, rng=Stream(5)) for _ in range(2))
    assert torch.equal(a.adversarial, b.adversarial)
    few = Square(queries=150)(model, x[:3], y[:3], threat=threat, rng=Stream(5))
    assert torch.allclose(few.adversarial, a.adversarial[:3], atol=1e-6)
    other = Square(queries=150)(model, x, y, threat=threat, rng=Stream(6))
    assert not torch.equal(a.adversarial, other.adversarial)


def test_schedule() -> None:
    assert [share_of_pixels(i, 10_000, 0.8) for i in (0, 10, 11, 51, 8001)] == [0.8, 0.8, 0.4, 0.2, 0.8 / 512]
    assert share_of_pixels(6, 5000, 0.8) == 0.4  # stretched: iteration 6 of 5,000 is 12 of 10,000


def test_refusals() -> None:
    with pytest.raises(InputError, match="need an integer queries >= 1; got 0"):
        Square(queries=0)
    with pytest.raises(InputError, match=r"need 0 < p <= 1; got 1\.5"):
        Square(p=1.5)
    model, x, y = example((6,), 2)
    with pytest.raises(InputError, match=r"need images \(n, channels, height, width\) for Square; got \(2, 6\)"):
        Square()(model, x, y, threat=Threat("L2", 1.0, None), rng=Stream(0))
    model, x, y = example((1, 5, 5), 2)
    with pytest.raises(InputError, match="need a threat in Linf or L2 for Square; got L1"):
        Square()(model, x, y, threat=Threat("L1", 1.0, None), rng=Stream(0))
