"""Fixtures for every test."""

from pathlib import Path

import pytest
import torch

# Tiny networks on two busy threads wait for each other; pytest's own workers use the cores better.
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and networks that others made; tests that need it say so where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, the published logs, data and networks, which is not part of the repository")
    return SHARED
