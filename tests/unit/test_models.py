"""Networks: shapes, the normaliser in front, and the sizes of the published architectures."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import max_pool2d, relu

from certify.layers import Normalize
from paper_repro.models import lenet, linear, mlp, mnist_challenge, wong_kolter
from tests.networks import digits_linear, digits_mlp

NETWORKS: list[tuple[Callable[..., nn.Sequential], dict[str, int], tuple[int, ...], int]] = [
    (lenet, {}, (1, 28, 28), 10),
    (lenet, {"channels": 3, "classes": 4}, (3, 28, 28), 4),
    (wong_kolter, {}, (1, 28, 28), 10),
    (wong_kolter, {"channels": 3, "side": 32, "classes": 4}, (3, 32, 32), 4),
    (mlp, {}, (1, 28, 28), 10),
    (mlp, {"channels": 2, "side": 5, "hidden": 7, "classes": 3}, (2, 5, 5), 3),
    (mnist_challenge, {}, (1, 28, 28), 10),
    (linear, {}, (1, 28, 28), 10),
    (linear, {"channels": 2, "side": 5, "classes": 3}, (2, 5, 5), 3),
    (digits_mlp, {}, (1, 8, 8), 10),
    (digits_linear, {}, (1, 8, 8), 10),
]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("make", "options", "shape", "classes"), NETWORKS)
def test_networks_map_images_to_logits(
    make: Callable[..., nn.Sequential], options: dict[str, int], shape: tuple[int, ...], classes: int
) -> None:
    model = make(**options).eval()
    assert isinstance(model[0], Normalize)
    assert not any(isinstance(m, Normalize) for m in list(model.modules())[2:]), "one normaliser, in front"
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    assert logits.shape == (3, classes)
    # Rows do not see each other: an example's logits do not depend on its batch.
    torch.testing.assert_close(model(x[1:2]), logits[1:2])


def test_normalize_is_the_affine_map_of_its_two_buffers() -> None:
    layer = Normalize([0.5, 0.25], [0.5, 0.125])
    x = torch.tensor([[[[0.0, 1.0]], [[0.0, 1.0]]]])
    assert layer(x).tolist() == [[[[-1.0, 1.0]], [[-2.0, 6.0]]]]
    # Any number of dimensions behind the channels, none included.
    assert layer(torch.tensor([[0.5, 0.5]])).tolist() == [[0.0, 2.0]]
    assert layer(torch.full((1, 2, 3, 3, 3), 0.5)).unique().tolist() == [0.0, 2.0]
    assert parameters(layer) == 0
    assert sorted(layer.state_dict()) == ["mean", "std"], "a checkpoint carries the normalisation"


def test_mnist_networks_normalise_as_published() -> None:
    """The two verified families read raw pixels; LeNet reads [-1, 1]."""
    x = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)
    assert lenet()[0](x).flatten().tolist() == [-1.0, 0.0, 1.0]
    for make in (wong_kolter, mlp, linear):
        assert make()[0](x).flatten().tolist() == [0.0, 0.5, 1.0]


def test_lenet_is_the_published_function() -> None:
    """ReLU and maximum commute, so pooling first gives not nearly but exactly the same logits."""
    model = lenet().eval()
    normalize, first, second, hidden, last = (
        m for m in model if not isinstance(m, nn.ReLU | nn.MaxPool2d | nn.Flatten)
    )
    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    features = max_pool2d(relu(second(max_pool2d(relu(first(normalize(x))), 2))), 2)
    assert torch.equal(model(x), last(relu(hidden(features.flatten(1)))))


def test_sizes_of_the_published_networks() -> None:
    assert parameters(lenet()) == (20 * 25 + 20) + (50 * 20 * 25 + 50) + (800 * 500 + 500) + 5010
    assert parameters(wong_kolter()) == (16 * 16 + 16) + (32 * 16 * 16 + 32) + (1568 * 100 + 100) + 1010
    assert parameters(wong_kolter(3, 32)) == (3 * 16 * 16 + 16) + (32 * 16 * 16 + 32) + (2048 * 100 + 100) + 1010
    assert parameters(mlp()) == (784 * 100 + 100) + (100 * 100 + 100) + 1010
    assert parameters(linear()) == 7850
