"""Networks that others trained: converted without running them, they make exactly the published clean errors."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from certify import InputError
from certify.campaign.weights import load_weights
from paper_repro.data import Data, mnist
from paper_repro.models import import_pickle, mlp, wong_kolter


@cache
def mnist_test() -> Data:
    return mnist("test")


@pytest.fixture
def mnist_images(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.setenv("ROBUST_RADIUS_DATA", str(shared / "data"))
    return mnist_test()


@pytest.mark.parametrize(
    ("name", "make", "percent"),
    [
        ("NOR_MLP_B", mlp, 2.05),
        ("ADV_MLP_B_0.05", mlp, 1.62),
        ("LPD_MLP_B_0.1", mlp, 4.09),
        ("LPD_MLP_B_0.3", mlp, 39.22),
        ("kw_mnist_0.1", wong_kolter, 1.8),  # published with one decimal
    ],
)
def test_clean_error(
    shared: Path, mnist_images: Data, tmp_path: Path, name: str, make: Callable[[], nn.Module], percent: float
) -> None:
    path = import_pickle(make(), shared / "checkpoints" / f"{name}.pth", tmp_path)
    model = load_weights(make(), path)
    with torch.inference_mode():
        wrong = int((model(mnist_images.x).argmax(1) != mnist_images.y).sum())
    decimals = len(str(percent).partition(".")[2])
    assert round(wrong / len(mnist_images) * 100, decimals) == percent


def test_a_cascade_is_no_network(shared: Path, tmp_path: Path) -> None:
    """The CIFAR-10 file holds two networks, of which the second takes what the first cannot certify; neither alone is
    the published classifier, so none is taken for it."""
    pickled = shared / "checkpoints" / "kw_cifar_small_l2_36px.pth"
    content = torch.load(pickled, map_location="cpu", weights_only=True)
    assert [len(state) for state in content["state_dict"]] == [8, 8]
    with pytest.raises(InputError, match=r"kw_cifar_small_l2_36px\.pth: need a state dict of tensors; got list$"):
        import_pickle(wong_kolter(3, 32), pickled, tmp_path)
    # One of the two, taken out by hand, fits.
    torch.save({"state_dict": content["state_dict"][:1]}, tmp_path / "first.pth")
    model = load_weights(wong_kolter(3, 32), import_pickle(wong_kolter(3, 32), tmp_path / "first.pth", tmp_path / "a"))
    for ours, theirs in zip(model.parameters(), content["state_dict"][0].values(), strict=True):
        assert torch.equal(ours, theirs)
