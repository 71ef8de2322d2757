"""Smoothing in floating point certifies falsehoods; in integers it does not.

The theorem takes noise and sum for real numbers. In float32, x + e is rounded to the grid of the sum, and e comes from
the grid of e: where e is the larger of the two, the low bits of the sum are those of x. A base classifier that reads
them knows which image the noise was added to, is right about it every time, and g is certified to be constant in a ball
on which it is not.
"""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from certify import ABSTAIN, Certificate, Gaussian, RoundedGaussian, Smoothing, Stream
from certify.lattice import to_lattice
from certify.noise import Noise
from tests.classifiers import affine

PIXELS, SIGMA = 64, 1.0
FLOAT = Gaussian(SIGMA)
WHITE, GREY = 255, 192
"""The float32 nearest to 192 / 255 is an odd multiple of 2**-24; 255 / 255 = 1 is an even one."""


class LowBit(nn.Module):
    """Class 1 where more of the values in [-1, -1/4) are odd multiples of 2**-24 than even ones.

    Where x >= 192 / 255 and x + e < -1/4, e is below -1 and a multiple of 2**-23. The sum is then exact, and as odd or
    even as x.
    """

    def forward(self, x: Tensor) -> Tensor:
        informative = (x >= -1) & (x < -0.25)
        multiples = (x.double() * 2**24).where(informative, torch.zeros(()).double())
        whole = multiples == multiples.round()
        odd = multiples.long() % 2 != 0
        score = (torch.where(odd, 1, -1) * (informative & whole)).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1).float()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Classifiers this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def image(level: int) -> Tensor:
    """One image of one grey level."""
    return torch.full((1, PIXELS), level) / 255


def distance(a: int, b: int) -> float:
    """The L2 distance of two such images."""
    return math.sqrt(PIXELS) * abs(a - b) / 255


def method(noise: Noise, n: int = 1000) -> Smoothing:
    return Smoothing(noise, n0=100, n=n, alpha=0.001)


def test_float_smoothing_certifies_a_ball_with_an_adversarial_example_in_it() -> None:
    model = LowBit().eval()
    c = method(FLOAT)(model, torch.cat([image(WHITE), image(GREY)]), rng=Stream(0))
    assert c.prediction.tolist() == [0, 1]
    apart = distance(WHITE, GREY)
    assert 1.97 < apart < 1.98
    assert c.radius[0] > 2.4  # g is "proved" to be class 0 in a ball that holds the grey image,
    assert method(FLOAT).predict(model, image(GREY), rng=Stream(1)).tolist() == [1]  # where it is class 1,
    assert c.radius[1] > 2.3  # and "proved" to be class 1 around it, the white image included


def test_one_level_of_grey_is_enough() -> None:
    """The images differ by 1 / 255, which nobody sees; the radii are some 70 times their distance."""
    model = LowBit().eval()
    c = method(FLOAT)(model, torch.cat([image(WHITE), image(WHITE - 1)]), rng=Stream(0))
    assert c.prediction.tolist() == [0, 1]
    assert (c.radius > 65 * distance(WHITE, WHITE - 1)).all()


LEVELS = [255, 254, 253, 240, 192, 191, 128, 64, 1, 0]


def contradictions(c: Certificate) -> int:
    """Pairs of images that are certified to differ, the one inside the ball of the other."""
    pairs = [(i, j) for i in range(len(LEVELS)) for j in range(len(LEVELS)) if c.prediction[i] != c.prediction[j]]
    held = [(i, j) for i, j in pairs if ABSTAIN not in (c.prediction[i], c.prediction[j])]
    return sum(bool(c.radius[i] >= distance(LEVELS[i], LEVELS[j])) for i, j in held)


def test_integer_smoothing_of_the_same_classifier_certifies_nothing_false() -> None:
    """At every level of grey; float smoothing contradicts itself at most of them."""
    x = torch.cat([image(level) for level in LEVELS])
    integer, real = (
        method(n, 2000)(LowBit().eval(), x, rng=Stream(0)) for n in (RoundedGaussian(SIGMA, PIXELS), FLOAT)
    )
    assert (integer.region, real.region) == ("lattice", "ball")
    assert contradictions(real) > 10
    assert contradictions(integer) == 0
    # Two images told apart without fail above look alike now: what is left is in the low bits of the table.
    assert (integer.prediction != ABSTAIN).sum() > 5
    assert integer.radius[LEVELS.index(WHITE)] < distance(WHITE, GREY)


def test_integer_smoothing_still_certifies_what_is_true() -> None:
    """An affine classifier: what is lost against float smoothing is the defect, about 10^-9."""
    model = affine(3, (PIXELS,), seed=3)
    x = torch.randint(0, 256, (5, PIXELS), generator=torch.Generator().manual_seed(0)) / 255
    true = model.distance(x)
    for noise in (FLOAT, RoundedGaussian(SIGMA, PIXELS)):
        c = method(noise, n=4000)(model, x, rng=Stream(2))
        held = c.prediction != ABSTAIN
        assert held.sum() >= 3
        assert torch.equal(c.prediction[held], model(x).argmax(1)[held])
        assert (c.radius <= true + 1 / 255).all()  # rounding the noise moves the boundary by less than a level
        assert (c.radius[held] > 0.5 * true[held]).any()


# --- the base classifier sees a function of the integer sum -------------------------------------------------------

NOISE = RoundedGaussian(0.5, 3)
INTEGERS = st.integers(-NOISE.reach, NOISE.reach)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 255), INTEGERS, st.integers(0, 255)), min_size=3, max_size=3))
def test_equal_sums_give_equal_floats_bit_for_bit(cases: list[tuple[int, int, int]]) -> None:
    """Whatever image and noise a sum came from, the base classifier is given the same 32 bits."""
    v, z, other = (torch.tensor(column) for column in zip(*cases, strict=True))
    rest = v + z - other
    other = torch.where(rest.abs() <= NOISE.reach, other, v)  # the noise that completes the sum is one that occurs
    seen = []
    for level, noise in ((v, z), (other, v + z - other)):
        for x in (level / 255, level * torch.tensor(1 / 255), level.double() / 255):  # however the file was decoded
            out = torch.empty(1, 3)
            NOISE.add(out, to_lattice(x, 255), noise[None])
            seen.append(out.view(torch.int32).tolist())
    assert all(bits == seen[0] for bits in seen)


def test_every_sum_has_one_float_and_every_float_one_sum() -> None:
    seen: dict[int, set[float]] = {}
    z = torch.arange(-NOISE.reach, NOISE.reach + 1)
    for level in range(256):
        out = torch.empty(len(z), 1)
        NOISE.add(out, torch.tensor([level]), z[:, None])
        for total, value in zip((z + level).tolist(), out[:, 0].tolist(), strict=True):
            seen.setdefault(total, set()).add(value)
    assert len(seen) == 2 * NOISE.reach + 256 == 2296
    assert all(len(values) == 1 for values in seen.values())
    assert len(set.union(*seen.values())) == len(seen)


def test_converting_before_adding_would_not_do() -> None:
    """Integer noise that is turned into a float and then added: most sums have several floats, up to nine of them."""
    z = np.arange(-NOISE.reach, NOISE.reach + 1)
    noise = (z / 255).astype(np.float32)
    seen: dict[int, set[float]] = {}
    for level in range(256):
        values = np.float32(level / 255) + noise
        for total, value in zip((z + level).tolist(), values.tolist(), strict=True):
            seen.setdefault(total, set()).add(value)
    several = [len(values) for values in seen.values() if len(values) > 1]
    assert (len(seen), len(several), max(several)) == (2296, 1852, 9)
