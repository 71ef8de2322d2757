"""Fixtures for every test."""

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from paper_repro.data import Data, mnist

# Tiny networks on two busy threads wait for each other; pytest's own workers use the cores better.
torch.set_num_threads(1)

# For properties that hold of what others hand in: few examples every time, many in the tests marked long.
settings.register_profile("short", max_examples=50, deadline=None)
settings.register_profile(
    "long", max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and networks that others made; tests that need it say so where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, the published logs, data and networks, which is not part of the repository")
    return SHARED


@cache
def _mnist_test() -> Data:
    return mnist("test")


@pytest.fixture
def images(shared: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """The 10,000 MNIST test images and labels, from the official files."""
    monkeypatch.setenv("ROBUST_RADIUS_DATA", str(shared / "data"))
    return _mnist_test().x, _mnist_test().y
