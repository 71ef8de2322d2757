"""Lower and upper bounds meet, or contradict."""

from dataclasses import replace

import pytest
import torch

from certify import ABSTAIN, Certificate, Contradiction, Deterministic, InputError, PerExample, bracket
from certify.threat import Region


def certificate(guarantee: Deterministic | PerExample) -> Certificate:
    return Certificate(
        prediction=torch.tensor([1, 0, ABSTAIN, 2]),
        radius=torch.tensor([0.5, 0.3, 0.0, 0.2], dtype=torch.float64),
        norm="L2",
        subject="f",
        guarantee=guarantee,
        method="m",
        samples=torch.zeros(4, dtype=torch.int64),
    )


Y = torch.tensor([1, 1, 1, 2])


def test_joins() -> None:
    b = bracket(certificate(Deterministic()), Y, torch.tensor([0.75, 0.0, 0.1, torch.inf]))
    assert b.lower.tolist() == [0.5, 0.0, 0.0, 0.2]  # a wrong certified prediction bounds nothing
    assert b.upper.tolist() == [0.75, 0.0, pytest.approx(0.1), torch.inf]
    assert not b.crossed.any()
    assert (b.lower <= b.upper).all()


@pytest.mark.parametrize("distance", [0.5, 0.25])
def test_a_counterexample_inside_contradicts(distance: float) -> None:
    upper = torch.tensor([distance, 1.0, 1.0, 1.0], dtype=torch.float64)
    with pytest.raises(
        Contradiction, match=r"example 0 is certified to 0\.5 in L2, and misclassified at 0\.\d+; 1 such"
    ):
        bracket(certificate(Deterministic()), Y, upper)
    assert bracket(certificate(PerExample(0.001)), Y, upper).crossed.tolist() == [True, False, False, False]


@pytest.mark.parametrize("region", ["ball", "box", "lattice"])
def test_a_contradiction_names_the_region(region: Region) -> None:
    """An input outside the box refutes nothing that was said of the box: the reader must know what was."""
    upper = torch.tensor([0.25, 1.0, 1.0, 1.0])
    with pytest.raises(Contradiction, match=rf"counterexample must lie in the certificate's region, the {region}$"):
        bracket(replace(certificate(Deterministic()), region=region), Y, upper)


def test_refuses() -> None:
    for upper in (torch.ones(3), torch.tensor([-1.0, 1, 1, 1]), torch.tensor([float("nan"), 1, 1, 1])):
        with pytest.raises(InputError, match="distances"):
            bracket(certificate(Deterministic()), Y, upper)
