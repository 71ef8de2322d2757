"""Fixtures for every test."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and networks that others made; tests that need it say so where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, the published logs, data and networks, which is not part of the repository")
    return SHARED
