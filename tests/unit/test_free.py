"""Free adversarial training: one backward pass for both gradients, and a perturbation that outlives its batch."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from typer.testing import CliRunner

from certify import InputError, Stream, Threat
from paper_repro.__main__ import app
from paper_repro.data import Data, digits
from paper_repro.training import Erm, FreeTraining, Ramp, Training, fit
from paper_repro.training.cost import counting
from paper_repro.training.fit import initialise
from paper_repro.training.free import DELTA
from paper_repro.training.state import STATE
from paper_repro.training.step import Step
from tests.networks import digits_linear, digits_mlp

fit_module = importlib.import_module("paper_repro.training.fit")
ROOT = Path(__file__).resolve().parents[2]
EPS = 0.1
FREE = FreeTraining(Threat("Linf", EPS), replays=3)


def few(count: int = 100) -> Data:
    data = digits("train")
    return Data(data.x[:count], data.y[:count], data.id[:count])


def fresh(seed: int = 0) -> nn.Sequential:
    model = digits_mlp().train()
    initialise(model, seed)
    return model


def optimiser(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_one_backward_pass_per_update_gives_both_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    backward = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *a, **k: (calls.append("backward"), backward(*a, **k))[1])
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: pytest.fail("a second backward pass"))
    model, data, memory = fresh(), few(20), {}
    optimizer = optimiser(model)
    with counting(model) as passes:
        for number in range(4):
            FREE.update(model, optimizer, data.x, data.y, step=Step(Stream(0), number, memory=memory))
    assert calls == ["backward"] * 4
    assert (passes.forwards, passes.backwards) == (80, 80)


def test_updates_equal_the_two_pass_computation() -> None:
    """A slow twin: the weights' gradient and the input's are computed apart, both before the weights change."""
    data, memory = few(90), {}
    model, twin = fresh(), fresh()
    optimizer, twins = optimiser(model), optimiser(twin)
    delta = torch.zeros(40, 1, 8, 8)
    for number, first in enumerate([0, 0, 0, 40, 40, 40, 80, 80, 80, 0]):
        x, y = data.x[first : first + 40], data.y[first : first + 40]
        loss = FREE.update(model, optimizer, x, y, step=Step(Stream(0), number, memory=memory))

        n = len(x)
        moved = delta[:n].clone().requires_grad_()
        (by_input,) = torch.autograd.grad(cross_entropy(twin((x + moved).clamp(0, 1)), y), moved)
        expected = cross_entropy(twin((x + delta[:n]).clamp(0, 1)), y)
        gradients = torch.autograd.grad(expected, list(twin.parameters()))
        for p, g in zip(twin.parameters(), gradients, strict=True):
            p.grad = g
        twins.step()
        delta[:n] = torch.clamp(delta[:n] + EPS * by_input.sign(), -EPS, EPS)

        torch.testing.assert_close(loss, expected.detach())
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b)
        assert torch.equal(memory[DELTA], delta), f"update {number}"
    assert len(delta[:10].unique()) > 1


def test_the_first_update_is_plain_and_steps_reach_the_corners() -> None:
    """delta starts at zero; its first step is a whole eps, so that every coordinate with a gradient is at a corner."""
    data, memory = few(30), {}
    plain, free = fresh(), fresh()
    Erm().update(plain, optimiser(plain), data.x, data.y, step=Step(Stream(0)))
    FREE.update(free, optimiser(free), data.x, data.y, step=Step(Stream(0), memory=memory))
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(free), strict=True))
    assert memory[DELTA].abs().unique().tolist() in ([0.0, pytest.approx(EPS)], [pytest.approx(EPS)])


def test_one_replay_is_not_plain_training() -> None:
    """m = 1 carries the perturbation of one batch to the next: the first update is plain, the second is not."""
    data, memory = few(60), {}
    plain, free = fresh(), fresh()
    one, two = optimiser(plain), optimiser(free)
    method = FreeTraining(Threat("Linf", EPS), replays=1)
    for number in range(2):
        x, y = data.x[30 * number : 30 * number + 30], data.y[30 * number : 30 * number + 30]
        Erm().update(plain, one, x, y, step=Step(Stream(0), number))
        method.update(free, two, x, y, step=Step(Stream(0), number, memory=memory))
        same = all(torch.equal(a, b) for a, b in zip(weights(plain), weights(free), strict=True))
        assert same == (number == 0)


def test_saturated_pixels_do_not_move() -> None:
    model = fresh()
    x = torch.full((1, 1, 8, 8), 0.5)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0.0, 1.0
    start = torch.full((1, 1, 8, 8), 0.02)
    start[0, 0, 0, 0] = -0.05  # below the box there: no gradient comes through the clip
    start[0, 0, 0, 1] = 0.05  # above it
    memory = {DELTA: start.clone()}
    FREE.update(model, optimiser(model), x, torch.tensor([3]), step=Step(Stream(0), 1, memory=memory))
    moved = memory[DELTA]
    assert (moved[0, 0, 0, :2] == start[0, 0, 0, :2]).all()
    assert (moved != start).sum() == 62
    unbounded = {DELTA: start.clone()}
    method = FreeTraining(Threat("Linf", EPS, box=None))
    method.update(model, optimiser(model), x, torch.tensor([3]), step=Step(Stream(0), 1, memory=unbounded))
    assert (unbounded[DELTA] != start).all(), "without a box nothing is saturated"


def test_a_smaller_batch_changes_the_first_rows_only() -> None:
    model, data, memory = fresh(), few(30), {}
    optimizer = optimiser(model)
    FREE.update(model, optimizer, data.x, data.y, step=Step(Stream(0), memory=memory))
    before = memory[DELTA].clone()
    FREE.update(model, optimizer, data.x[:7], data.y[:7], step=Step(Stream(0), 1, memory=memory))
    assert memory[DELTA].shape == (30, 1, 8, 8)
    assert torch.equal(memory[DELTA][7:], before[7:])
    assert not torch.equal(memory[DELTA][:7], before[:7])


def test_the_budget_follows_a_ramp() -> None:
    model, data, memory = fresh(), few(30), {}
    method = FreeTraining(Threat("Linf", EPS), replays=1, ramp=Ramp())
    optimizer = optimiser(model)
    for number in range(4):
        method.update(model, optimizer, data.x, data.y, step=Step(Stream(0), number, 4, 1, memory))
        assert float(memory[DELTA].abs().max()) == pytest.approx(EPS * number / 4)


def test_the_inputs_stay_and_the_model_keeps_its_mode() -> None:
    model, data, memory = fresh(), few(30), {}
    before, modes = data.x.clone(), []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    for number in range(2):
        FREE.update(model, optimiser(model), data.x, data.y, step=Step(Stream(0), number, memory=memory))
    assert torch.equal(data.x, before)
    assert modes == [True, True]


@pytest.mark.parametrize("replays", [1, 2, 3, 4])
def test_the_number_of_updates_does_not_depend_on_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replays: int
) -> None:
    """Epochs count updates, and so does the learning rate; a pass over the data takes m of them."""
    met: list[tuple[int, ...]] = []
    rates: list[float] = []
    update = FreeTraining.update

    def spy(self: FreeTraining, model: Any, optimizer: Any, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        met.append(tuple(y.tolist()))
        rates.append(optimizer.param_groups[0]["lr"])
        return update(self, model, optimizer, x, y, step=step)

    monkeypatch.setattr(FreeTraining, "update", spy)
    training = Training(epochs=4, batch_size=40, schedule="step", step_epochs=2, lr=0.1, step_gamma=0.5)
    fit(digits_linear(), few(), FreeTraining(Threat("Linf", EPS), replays), training, seed=0, out=tmp_path)
    assert len(met) == 4 * 3
    assert rates == [0.1] * 6 + [0.05] * 6
    assert all(len(set(met[i : i + replays])) == 1 for i in range(0, 12, replays))
    assert [len(batch) for batch in met[::replays]] == ([40, 40, 20] * 4)[: -(-12 // replays)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreeTraining(Threat("L2", 1.0)), r"^need an Linf threat, in which the step is a sign; got L2$"),
        (lambda: FreeTraining(Threat("Linf", 0.1), replays=0), r"^need an integer replays >= 1; got 0$"),
        (lambda: FreeTraining(Threat("Linf", -0.1)), r"^need a finite eps >= 0; got -0\.1$"),
    ],
)
def test_impossible_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_more_replays_than_epochs_are_refused(tmp_path: Path) -> None:
    """Some examples would never be met."""
    method = FreeTraining(Threat("Linf", EPS), replays=5)
    with pytest.raises(InputError, match=r"^need replays <= epochs, for every example to be met; got 5 and 4$"):
        fit(digits_linear(), few(), method, Training(epochs=4), seed=0, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    fit(digits_linear(), few(), method, Training(epochs=5), seed=0, out=tmp_path / "new")


# --- interruption -------------------------------------------------------------------------------------------------

EAGER = (
    "import importlib, runpy;"
    "importlib.import_module('paper_repro.training.fit')._SAVE_EVERY_SECONDS = -1.0;"
    "runpy.run_module('paper_repro', run_name='__main__', alter_sys=True)"
)


def arguments(out: Path) -> list[str]:
    return [
        *("train", "--method", f'FreeTraining(Threat("Linf", {EPS}), replays=3)', "--seed", "3"),
        *("--data", "paper_repro.data:digits", "--model", "tests.networks:digits_mlp"),
        *("--epochs", "6", "--batch-size", "64", "--out", str(out)),
    ]


def polled(process: subprocess.Popen[bytes], state: Path) -> Iterator[int]:
    """The step on disk while the process lives; -1 where there is none."""
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline, "the training does not get on"
        try:
            # Not "pt": torch would open the path a second time to map it; it may have been replaced in between.
            with safe_open(state, "np") as file:
                step = int(file.metadata()["step"])
            yield step
        except (FileNotFoundError, SafetensorError):
            yield -1
        time.sleep(0.001)


def test_the_perturbation_survives_a_kill(tmp_path: Path) -> None:
    """SIGKILL between two replays of one batch; the same command then ends in the same weights, bit for bit."""
    assert CliRunner().invoke(app, arguments(tmp_path / "whole"), catch_exceptions=False).exit_code == 0
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", EAGER, *arguments(out)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
    )
    for step in polled(process, out / STATE):
        if step >= 50 and step % 3:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL
    with safe_open(out / STATE, "pt") as file:
        assert 50 <= int(file.metadata()["step"]) < 6 * 23
        assert file.get_tensor(f"memory.{DELTA}").abs().max() == pytest.approx(EPS)
    assert CliRunner().invoke(app, arguments(out), catch_exceptions=False).exit_code == 0
    for name in ("weights.safetensors", "config.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
