"""Linear problems whose optimal attack is known, and what every attack's answer must satisfy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from analysis.attacks.attacked import SLACK, Attacked, norm_of
from certify.threat import Box, Norm
from tests.classifiers import Affine, affine

SHAPES = [(4,), (1, 5, 5), (3, 4, 4)]
BOXES: list[Box] = [None, (0.0, 1.0)]
# Larger than any distance here: a budget that no minimal-norm attack notices.
FAR = 1e4


def nearest_error(model: Affine, x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """(n,) float64 L2 or Linf distance to the nearest boundary, and (n, ...) the point on it."""
    w, b = model.linear.weight.detach().double(), model.linear.bias.detach().double()
    flat = x.flatten(1).double()
    scores = flat @ w.T + b
    top = scores.argmax(1)
    slope = w[None] - w[top][:, None]
    gap = scores.gather(1, top[:, None]) - scores
    dual = slope.norm(dim=2) if norm == "L2" else slope.abs().sum(2)
    ratio = torch.where(dual > 0, gap / dual, torch.inf)
    distance, k = ratio.min(1)
    chosen = slope[torch.arange(len(x)), k]
    unit = chosen / chosen.norm(dim=1, keepdim=True) if norm == "L2" else chosen.sign()
    return distance, (flat + distance[:, None] * unit).view(x.shape)


def linear_case(
    shape: tuple[int, ...], n: int, norm: Norm, box: Box, classes: int = 3, seed: int = 0, scale: float = 1.0
) -> tuple[Affine, Tensor, Tensor, Tensor]:
    """A model, n inputs whose nearest error lies inside the box, their labels, and the distance of that error."""
    model = affine(classes, shape, seed)
    with torch.no_grad():
        model.linear.weight.mul_(scale)
        model.linear.bias.mul_(scale)
        if box is not None:  # boundaries that pass near the middle of the box
            model.linear.bias.sub_(model.linear.weight.sum(1) * (box[0] + box[1]) / 2)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(4000, *shape, generator=generator) * 0.3
    if box is not None:
        x = (box[0] + box[1]) / 2 + (box[1] - box[0]) * x.clamp(-0.5, 0.5) / 2
    distance, point = nearest_error(model, x, norm)
    keep = distance > 0.05
    if box is not None:
        keep &= ((point > box[0]) & (point < box[1])).flatten(1).all(1)
    x, distance = x[keep][:n], distance[keep][:n]
    assert len(x) == n
    return model, x, model(x).argmax(1), distance


def assert_honest(attacked: Attacked, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Every success is one: misclassified, in ball and box, at the stated distance; every failure is x itself."""
    hit, threat = attacked.success, attacked.threat
    z = attacked.adversarial
    assert torch.equal(hit, torch.isfinite(attacked.distance))
    assert torch.equal(z[~hit], x[~hit])
    actual = norm_of(z.double() - x.double(), threat.norm)
    torch.testing.assert_close(actual[hit], attacked.distance[hit], rtol=1e-12, atol=0)
    rounding = torch.finfo(x.dtype).eps * norm_of(z, threat.norm)
    assert bool((actual <= threat.eps * (1 + SLACK) + rounding).all())
    if threat.box is not None:
        assert float(z.min()) >= threat.box[0]
        assert float(z.max()) <= threat.box[1]
    # On a boundary the rounding of the logits, hence a tie, may depend on the size of the batch.
    for i in hit.nonzero()[:, 0].tolist():
        logits = model(z[i : i + 1])[0].detach()
        rivals = torch.cat([logits[: y[i]], logits[y[i] + 1 :]])
        assert float(rivals.max() - logits[y[i]]) >= -1e-5 * max(1.0, float(logits.abs().max()))


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """The sizes of the batches that the model is given."""
    sizes: list[int] = []
    handle = model.register_forward_hook(lambda _module, args, _output: sizes.append(len(args[0])))
    try:
        yield sizes
    finally:
        handle.remove()
