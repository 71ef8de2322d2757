"""The cost meter: passes counted by hand, peaks of memory known in advance, and turns taken fairly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from analysis.attacks import PGD, DeepFool
from certify import InputError, Stream, Threat
from paper_repro.data import Data, digits
from paper_repro.training import Erm, FreeTraining, PGDTraining, Training
from paper_repro.training.cost import Cost, _peak_memory, counting, measure, table
from paper_repro.training.fit import Diverged
from paper_repro.training.step import Step
from tests.networks import digits_mlp


def few(count: int) -> Data:
    data = digits("train")
    return Data(data.x[:count], data.y[:count], data.id[:count])


def test_rows_are_counted_in_both_directions() -> None:
    model, x = digits_mlp(), few(7).x
    with counting(model) as passes:
        model(x[:3]).sum().backward()
        with torch.no_grad():
            model(x)
        z = x[:2].clone().requires_grad_()
        logits = model(z)
        torch.autograd.grad(logits[:, 0].sum(), z, retain_graph=True)
        logits[:, 1].sum().backward()
    model(x).sum().backward()  # not counted any more
    assert (passes.forwards, passes.backwards) == (3 + 7 + 2, 3 + 2 + 2)


def test_each_gradient_of_a_batch_of_them_counts() -> None:
    """Nine slopes of two inputs by one batched pass are 18 passes back, as many as one after the other."""
    model, z = digits_mlp(), few(2).x.requires_grad_()
    with counting(model) as passes:
        logits = model(z)[:, 1:]
        each = torch.eye(9)[:, None].expand(9, 2, 9)
        (together,) = torch.autograd.grad(logits, z, each, retain_graph=True, is_grads_batched=True)
        batched = passes.backwards
        alone = [torch.autograd.grad(logits[:, k].sum(), z, retain_graph=True)[0] for k in range(9)]
    assert torch.allclose(together, torch.stack(alone))
    assert (batched, passes.backwards) == (18, 36)


def test_the_meter_agrees_with_the_attack_that_it_watches() -> None:
    model, x = digits_mlp().eval(), few(6).x
    for attack in (DeepFool(steps=1), DeepFool(steps=1, candidates=4), PGD(4, early_stop=False)):
        with counting(model) as passes:
            found = attack(model, x, model(x).argmax(1), threat=Threat("L2", 5.0), rng=Stream(0))
        assert passes.backwards == int(found.backwards.sum())


def test_counting_ends_with_an_error_too() -> None:
    model, x, grad = digits_mlp(), few(7).x, torch.autograd.grad
    with pytest.raises(KeyError), counting(model) as passes:
        raise KeyError
    model(x)
    assert passes.forwards == 0
    assert torch.autograd.grad is grad


def test_the_peak_is_that_of_the_update() -> None:
    """Two blocks of 1 MB, of which the first is gone when a third comes: 2 MB at once, 3 in all."""

    def update() -> None:
        first = torch.zeros(250_000)
        second = first + 1
        del first
        third = second + 1
        del second, third

    peak = _peak_memory(update, torch.device("cpu"))
    assert 2_000_000 <= peak < 2_100_000


class Turns:
    """Notes who computes."""

    def __init__(self, name: str, turns: list[str]) -> None:
        self.name, self.turns = name, turns

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        self.turns.append(f"{self.name}{step.number}")
        return Erm().update(model, optimizer, x, y, step=step)


def test_methods_take_turns_on_the_same_batches() -> None:
    turns: list[str] = []
    methods = {name: Turns(name, turns) for name in "ab"}
    costs = measure(methods, digits_mlp, few(30), Training(epochs=2, batch_size=10), updates=2)
    assert turns == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]
    assert list(costs) == ["a", "b"]
    assert all(cost.forwards == cost.backwards == 1 for cost in costs.values())
    assert all(cost.seconds > 0 and cost.memory > 0 for cost in costs.values())


def test_costs_are_in_multiples_of_plain_training() -> None:
    threat = Threat("Linf", 0.1)
    methods: dict[str, Any] = {
        "plain": Erm(),
        "free": FreeTraining(threat, replays=2),
        "pgd": PGDTraining(threat, steps=7),
    }
    rows = table(measure(methods, digits_mlp, few(30), Training(2, batch_size=10), updates=1), "plain")
    assert [row["passes / plain"] for row in rows] == [1, 1, 8]
    assert rows[0]["time / plain"] == rows[0]["memory / plain"] == 1


class Growing:
    """Takes one more pass with every update; or leaves a weight that is no number."""

    def __init__(self, diverges: bool = False) -> None:
        self.diverges = diverges

    def update(self, model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        for _ in range(step.number):
            model(x)
        if self.diverges and step.number == 2:
            with torch.no_grad():
                next(iter(model.parameters()))[0] = torch.nan
        return torch.zeros(())


def test_passes_are_those_of_the_median_update_that_is_timed() -> None:
    costs = measure({"a": Growing()}, digits_mlp, few(30), Training(epochs=2, batch_size=10), updates=5)
    assert costs["a"].forwards == 4, "updates 2 to 6"


def test_the_cost_of_a_network_that_is_no_longer_one_is_none() -> None:
    methods = {"a": Growing(), "b": Growing(diverges=True)}
    with pytest.raises(Diverged, match=r"^a weight is not finite after update 2 of b$"):
        measure(methods, digits_mlp, few(30), Training(epochs=2, batch_size=10), updates=1)


def test_rows_are_quotients() -> None:
    costs = {"a": Cost(1, 1, 2.0, 2**20), "b": Cost(3, 2, 5.0, 3 * 2**20)}
    assert table(costs, "a")[1] == {
        "method": "b",
        **{"forwards": 3, "backwards": 2, "passes / plain": 2.5},
        **{"s / epoch": 5.0, "time / plain": 2.5, "peak MiB": 3.0, "memory / plain": 3.0},
    }


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(InputError, match=r"^need a reference among a; got 'b'$"):
        table({"a": Cost(1, 1, 1.0, 1)}, "b")
    with pytest.raises(InputError, match=r"^need a batch of 10 examples and an update; got 9, 1$"):
        measure({"a": Erm()}, digits_mlp, few(9), Training(1, batch_size=10), updates=1)
    with pytest.raises(InputError, match=r"^need a batch of 10 examples and an update; got 30, 0$"):
        measure({"a": Erm()}, digits_mlp, few(30), Training(1, batch_size=10), updates=0)
