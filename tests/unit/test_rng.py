"""Streams: named, independent, and on the CPU with their full state."""

import numpy as np
import pytest
import torch

from certify import InputError, Stream


def draw(stream: Stream, n: int = 1000) -> torch.Tensor:
    return torch.randn(n, generator=stream.generator())


def test_same_name_same_draws_other_name_other_draws() -> None:
    root = Stream(7)
    assert torch.equal(draw(root.child("estimate", 3)), draw(Stream(7).child("estimate").child(3)))
    names = [root, root.child("a"), root.child("b"), root.child(0), root.child("0"), Stream(8), root.child("a", "b")]
    draws = [tuple(draw(s, 4).tolist()) for s in names]
    assert len(set(draws)) == len(names)


def test_golden_bits() -> None:
    """A change here moves every committed count."""
    assert Stream(0).child("select", 5).bits(8).hex() == "6127a7bdca284533"
    assert draw(Stream(0).child("select", 5), 2000)[:3].tolist() == pytest.approx(
        [-0.468072, 1.61841, 0.526594], abs=1e-6
    )


def test_labels_cannot_be_confused() -> None:
    assert Stream(1).child("a", "b").bits(8) != Stream(1).child("a', 'b").bits(8)


def test_cpu_generators_keep_more_than_32_bits() -> None:
    """`manual_seed` keeps the low 32 bits on the CPU; streams that agree in those must still differ."""
    collide = [torch.Generator().manual_seed(s).initial_seed() for s in (5, 5 + 2**32)]
    assert collide[0] != collide[1]
    a, b = (torch.randn(64, generator=torch.Generator().manual_seed(s)) for s in (5, 5 + 2**32))
    assert torch.equal(a, b)  # the trap
    states = {Stream(0).child(i).generator().get_state()[24:5016].numpy().tobytes() for i in range(200)}
    assert len(states) == 200


def test_draws_look_normal_within_and_across_streams() -> None:
    """Moments of 10^6 draws at 6 standard errors: a false alarm once in 10^8."""
    x = torch.stack([draw(Stream(3).child(i), 1000) for i in range(1000)]).double()
    n = x.numel()
    assert abs(x.mean()) < 6 / n**0.5
    assert abs(x.var() - 1) < 6 * (2 / n) ** 0.5
    correlation = float((x[:-1] * x[1:]).mean())  # between neighbouring streams
    assert abs(correlation) < 6 / n**0.5
    assert abs((x[:, :-1] * x[:, 1:]).mean()) < 6 / n**0.5


def test_uniform_is_uniform() -> None:
    u = np.array([Stream(1).child(i).uniform() for i in range(20_000)])
    assert (u > 0).all()
    assert (u < 1).all()
    assert np.abs(np.sort(u) - np.linspace(0, 1, len(u))).max() < 3.3 / len(u) ** 0.5  # DKW at 1e-9


def test_global_state_is_untouched() -> None:
    before = torch.random.get_rng_state()
    draw(Stream(0))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "0"])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(InputError, match="need an integer seed"):
        Stream(seed)  # type: ignore[arg-type]


def test_bad_label() -> None:
    with pytest.raises(InputError, match=r"str and int labels; got 1\.5"):
        Stream(0).child(1.5)  # type: ignore[arg-type]
