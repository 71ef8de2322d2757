"""Conversions between norms are inclusions of balls, and say so."""

import pytest
import torch

from certify import Certificate, Deterministic, InputError
from certify.norms import Converted, convert


def certificate(norm: str, radii: list[float]) -> Certificate:
    return Certificate(
        prediction=torch.arange(len(radii)),
        radius=torch.tensor(radii, dtype=torch.float64),
        norm=norm,  # type: ignore[arg-type]
        subject="f",
        guarantee=Deterministic(),
        method="m",
        samples=torch.zeros(len(radii), dtype=torch.int64),
    )


ORDER = {"L1": 1.0, "L2": 2.0, "Linf": torch.inf}


@pytest.mark.parametrize("source", ORDER)
@pytest.mark.parametrize("target", ORDER)
def test_the_new_ball_lies_inside_the_old_one_and_touches_it(source: str, target: str) -> None:
    d = 7
    new = convert(certificate(source, [0.5]), target, d)  # type: ignore[arg-type]
    radius = float(new.radius[0])
    extremes = torch.cat([torch.eye(d), torch.ones(1, d), torch.randn(50, d)]).double()
    on_sphere = extremes / extremes.norm(ORDER[target], dim=1, keepdim=True) * radius
    longest = on_sphere.norm(ORDER[source], dim=1).max()
    assert longest <= 0.5 * (1 + 1e-15)
    assert longest >= 0.5 * (1 - 1e-9)


def test_the_step_is_recorded() -> None:
    new = convert(certificate("L2", [28.0]), "Linf", 784)
    assert new.norm == "Linf"
    assert new.method == Converted("m", "L2 to Linf by ||d||_L2 <= 28 ||d||_Linf")
    assert float(new.radius[0]) == pytest.approx(1.0, rel=1e-11)
    assert convert(new, "Linf", 784) is new


def test_changed_pixels() -> None:
    new = convert(certificate("L2", [0.9, 1.0, 1.5, 2.3]), "L0", 784)
    assert new.radius.tolist() == [0.0, 0.0, 2.0, 5.0]  # 1.0 itself is not trusted to its last bit
    assert new.region == "box"
    assert convert(certificate("L1", [2.5]), "L0", 784).radius.tolist() == [2.0]


def test_refusals() -> None:
    with pytest.raises(InputError, match="no conversion from L0 to L2"):
        convert(certificate("L0", [1.0]), "L2", 4)
    with pytest.raises(InputError, match="no conversion from Linf to L0"):
        convert(certificate("Linf", [1.0]), "L0", 4)
    with pytest.raises(InputError, match="need dimension >= 1; got 0"):
        convert(certificate("L2", [1.0]), "L1", 0)
