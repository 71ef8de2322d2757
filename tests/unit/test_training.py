"""Training: every number is a function of seed and step, so interruption leaves no trace in the weights."""

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from scipy.stats import chi2
from torch import Tensor, nn
from typer.testing import CliRunner

from certify import Gaussian, InputError, Stream, Threat
from certify.campaign.weights import file_digest, load_weights
from certify.layers import Normalize
from paper_repro.__main__ import app
from paper_repro.data import Data, digits
from paper_repro.training import (
    CatastrophicOverfitting,
    Diverged,
    Erm,
    FastTraining,
    NoiseAugmentation,
    Training,
    fit,
    read_history,
)
from paper_repro.training.fit import initialise
from paper_repro.training.history import HISTORY, overfitting
from paper_repro.training.state import STATE
from paper_repro.training.step import Step
from tests.networks import digits_linear, digits_mlp

# The package's namespace holds the function `fit`; the module behind it is found by name.
fit_module = importlib.import_module("paper_repro.training.fit")

ROOT = Path(__file__).resolve().parents[2]
FALSE_ALARM = 1e-9


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for a second thread, for long where other processes keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def few(count: int = 100) -> Data:
    """The first training digits."""
    data = digits("train")
    return Data(data.x[:count], data.y[:count], data.id[:count])


@pytest.fixture
def eager_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save after every step, not only where a long time has passed."""
    monkeypatch.setattr(fit_module, "_SAVE_EVERY_SECONDS", -1.0)


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The history without the clock's part in it."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_history(folder)]


class Interrupted(Exception):
    """Stands for whatever ends a run before its time."""


@dataclass(frozen=True)
class Recorder:
    """Descends as `Erm` does and keeps what it saw; equal in name to every other one."""

    labels: list[list[int]] = field(default_factory=list, repr=False)
    first_pixels: list[list[float]] = field(default_factory=list, repr=False)
    rates: list[float] = field(default_factory=list, repr=False)
    streams: list[Stream] = field(default_factory=list, repr=False)
    stop_before: int | None = field(default=None, repr=False)

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        if len(self.labels) == self.stop_before:
            raise Interrupted
        assert model.training, "dropout and batch norm learn only in training mode"
        self.labels.append(y.tolist())
        self.first_pixels.append(x[:, 0, 0, 0].tolist())
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.streams.append(step.rng)
        return Erm().update(model, optimizer, x, y, step=step)


# --- settings -----------------------------------------------------------------------------------------------------


def test_constant_rate() -> None:
    training = Training(epochs=2, lr=0.3, schedule="constant")
    assert [training.rate(s, 5) for s in (0, 4, 9)] == [0.3] * 3


def test_step_rate_changes_exactly_where_an_epoch_begins() -> None:
    training = Training(epochs=9, lr=1.0, schedule="step", step_epochs=3, step_gamma=0.5)
    rates = [training.rate(s, 7) for s in range(63)]
    assert rates == [1.0] * 21 + [0.5] * 21 + [0.25] * 21


def test_cosine_rate_goes_from_the_peak_towards_zero() -> None:
    training = Training(epochs=4, lr=0.2, schedule="cosine")
    assert training.rate(0, 10) == 0.2
    assert training.rate(20, 10) == 0.1
    rates = [training.rate(s, 10) for s in range(40)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.2 * np.sin(np.pi / 80) ** 2, rel=1e-12)
    assert training.rate(40, 10) == 0.0


def test_one_cycle_rate_rises_for_a_fifth_and_falls_to_zero() -> None:
    training = Training(epochs=10, lr=0.4, schedule="one_cycle")
    rates = [training.rate(s, 10) for s in range(100)]
    assert rates[0] == 0.4 * (1e-3 / 0.2)
    assert rates[20] == 0.4
    assert rates[60] == 0.2
    assert rates[99] == pytest.approx(0.4 * 0.01 / 0.8, rel=1e-12)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    # The rise starts a thousandth above zero and so meets the descent a thousandth above the peak, not higher.
    assert max(training.rate(s, 10_000) for s in range(19_800, 20_000)) <= 0.4 * 1.001


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, r"^need epochs >= 1; got 0$"),
        ({"batch_size": 0}, r"^need batch_size >= 1; got 0$"),
        ({"step_epochs": -1}, r"^need step_epochs >= 1; got -1$"),
        ({"lr": 0.0}, r"^need a finite lr > 0; got 0\.0$"),
        ({"lr": -1.0}, r"^need a finite lr > 0; got -1\.0$"),
        ({"lr": float("nan")}, r"^need a finite lr > 0; got nan$"),
        ({"lr": float("inf")}, r"^need a finite lr > 0; got inf$"),
        ({"step_gamma": 0.0}, r"^need a finite step_gamma > 0; got 0\.0$"),
        ({"momentum": -0.1}, r"^need 0 <= momentum < 1; got -0\.1$"),
        ({"momentum": 1.0}, r"^need 0 <= momentum < 1; got 1\.0$"),
        ({"momentum": float("nan")}, r"^need 0 <= momentum < 1; got nan$"),
        ({"weight_decay": -1e-9}, r"^need a finite weight_decay >= 0; got -1e-09$"),
        ({"weight_decay": float("inf")}, r"^need a finite weight_decay >= 0; got inf$"),
        ({"optimizer": "lbfgs"}, r"^need optimizer among sgd, adam; got 'lbfgs'$"),
        ({"schedule": "linear"}, r"^need schedule among constant, step, cosine, one_cycle, periodic; got 'linear'$"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Training(**{"epochs": 1, **wrong})


def test_the_optimiser_is_the_one_asked_for() -> None:
    sgd = Training(epochs=1, lr=0.3, momentum=0.5, weight_decay=0.01).make_optimizer(digits_linear())
    group = sgd.param_groups[0]
    assert isinstance(sgd, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.3, 0.5, 0.01, False)
    adam = Training(epochs=1, optimizer="adam", lr=0.3, weight_decay=0.01).make_optimizer(digits_linear())
    assert isinstance(adam, torch.optim.Adam)
    assert (adam.param_groups[0]["lr"], adam.param_groups[0]["weight_decay"]) == (0.3, 0.01)


# --- the methods --------------------------------------------------------------------------------------------------


def test_erm_takes_one_plain_gradient_step() -> None:
    model, data = digits_linear().train(), few()
    initialise(model, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    weight, bias = (p.detach().clone() for p in model.parameters())
    loss = Erm().update(model, optimizer, data.x, data.y, step=Step(Stream(0)))
    # Softmax regression: the gradient in closed form.
    x = data.x.flatten(1)
    probabilities = torch.softmax(x @ weight.T + bias, 1)
    error = (probabilities - torch.nn.functional.one_hot(data.y, 10)) / len(data)
    torch.testing.assert_close(model[-1].weight.detach(), weight - 0.5 * error.T @ x)
    torch.testing.assert_close(model[-1].bias.detach(), bias - 0.5 * error.sum(0))
    torch.testing.assert_close(loss, -probabilities[range(len(data)), data.y].log().mean())
    # A second step starts from a clean gradient, not from the sum of both.
    Erm().update(model, optimizer, data.x, data.y, step=Step(Stream(0)))
    assert model[-1].weight.grad is not None
    error = (torch.softmax(x @ (weight - 0.5 * error.T @ x).T + (bias - 0.5 * error.sum(0)), 1) * len(data)).div(
        len(data)
    ) - torch.nn.functional.one_hot(data.y, 10)
    torch.testing.assert_close(model[-1].weight.grad, error.T @ x / len(data))


def inputs_of_update(sigma: float, x: Tensor, rng: Stream) -> Tensor:
    """What a network sees in one update of Gaussian augmentation."""
    model, seen = digits_linear().train(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    y = torch.zeros(len(x), dtype=torch.int64)
    NoiseAugmentation(Gaussian(sigma)).update(model, torch.optim.SGD(model.parameters(), lr=0.1), x, y, step=Step(rng))
    (only,) = seen
    return only


def test_gaussian_noise_is_the_streams_and_is_not_clipped() -> None:
    x = few().x
    before = x.clone()
    seen = inputs_of_update(0.5, x, Stream(3).child("update", 7))
    noise = torch.empty_like(x).normal_(0.0, 0.5, generator=Stream(3).child("update", 7).generator())
    assert torch.equal(seen, noise + x)
    assert torch.equal(x, before), "the caller's batch stays as it is"
    assert seen.min() < 0, "clipping would train for another noise than the certifier draws"
    assert seen.max() > 1


def test_gaussian_noise_has_the_right_scale_and_is_fresh_at_every_step() -> None:
    x = torch.zeros(1000, 1, 8, 8)
    first, second = (inputs_of_update(0.25, x, Stream(0).child("update", step)) for step in (0, 1))
    for noise in (first, second):
        low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], noise.numel())
        assert low < (noise / 0.25).double().square().sum() < high
        # The mean of N draws is N(0, sigma^2 / N); 6.2 standard errors are exceeded once in 10^9.
        assert abs(noise.double().mean()) < 6.2 * 0.25 / noise.numel() ** 0.5
    # Shared or shifted noise would correlate with the other step's, or with its own next row.
    for a, b in ((first, second), (first[1:], first[:-1])):
        correlation = (a.double() * b.double()).mean() / 0.25**2
        assert abs(correlation) < 6.2 / a.numel() ** 0.5


@pytest.mark.parametrize("sigma", [0.0, -0.5, float("nan"), float("inf")])
def test_gaussian_augmentation_has_the_certifiers_rule_for_sigma(sigma: float) -> None:
    with pytest.raises(InputError, match=r"^need a finite sigma > 0; got"):
        NoiseAugmentation(Gaussian(sigma))


# --- the loop -----------------------------------------------------------------------------------------------------


def test_each_epoch_uses_each_example_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    ids = torch.arange(10)
    data = Data((ids / 16).view(-1, 1, 1, 1).expand(-1, 1, 8, 8), ids, ids)  # label and first pixel both say which
    seen = Recorder()
    training = Training(epochs=3, batch_size=4, lr=0.1)
    fit(digits_linear().eval(), data, seen, training, seed=5, out=tmp_path / "a")  # put into training mode by itself
    assert [len(batch) for batch in seen.labels] == [4, 4, 2] * 3, "the last, smaller batch is used too"
    epochs = [[label for batch in seen.labels[i : i + 3] for label in batch] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert seen.first_pixels == [[label / 16 for label in batch] for batch in seen.labels]
    assert seen.rates == [training.rate(step, 3) for step in range(9)]
    assert seen.streams == [Stream(5).child("update", step) for step in range(9)]
    other = Recorder()
    fit(digits_linear(), data, other, training, seed=6, out=tmp_path / "b")
    assert other.labels != seen.labels


def test_initial_weights_come_from_the_seed_alone() -> None:
    first, second, other = digits_mlp(), digits_mlp(), digits_mlp()
    initialise(first, 7)
    torch.rand(3)  # whatever happened to the global generator before
    initialise(second, 7)
    initialise(other, 8)
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    assert len({p.flatten()[0].item() for p in first.parameters()}) == 6, "layers do not share their draws"


def global_states() -> tuple[Any, ...]:
    legacy = np.random.get_state()  # noqa: NPY002 - the global generator is what must stay as it is
    return torch.get_rng_state().tolist(), legacy[1].tolist(), legacy[2:], random.getstate()


def test_global_generators_are_left_alone(tmp_path: Path) -> None:
    model, data = digits_mlp(), few()
    before = global_states()
    initialise(model, 3)
    assert global_states() == before
    fit(model, data, NoiseAugmentation(Gaussian(0.5)), Training(epochs=1, batch_size=50), seed=0, out=tmp_path)
    assert global_states() == before


def test_two_runs_are_equal_bit_for_bit(tmp_path: Path) -> None:
    training = Training(epochs=2, batch_size=32)
    first, second = digits_mlp(), digits_mlp()
    files = [
        fit(model, few(), NoiseAugmentation(Gaussian(0.5)), training, seed=1, out=tmp_path / name)
        for model, name in ((first, "a"), (second, "b"))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    other = fit(digits_mlp(), few(), NoiseAugmentation(Gaussian(0.5)), training, seed=2, out=tmp_path / "c")
    assert other.read_bytes() != files[0].read_bytes()


def test_the_model_is_left_trained_and_the_folder_holds_its_checkpoint(tmp_path: Path) -> None:
    model = digits_mlp()
    path = fit(model, few(), Erm(), Training(epochs=1), seed=4, out=tmp_path / "new", names=("m:f", "d:g"))
    assert not model.training
    loaded = load_weights(digits_mlp(), path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.json", HISTORY, "weights.safetensors"]
    config = json.loads((path.parent / "config.json").read_text())
    assert (config["model"], config["data"], config["method"]) == ("m:f", "d:g", "Erm()")
    assert (config["seed"], config["device"], config["training"]["epochs"]) == (4, "cpu", 1)


@pytest.mark.parametrize("method", [Erm(), NoiseAugmentation(Gaussian(0.2))])
def test_training_learns(tmp_path: Path, method: Any) -> None:
    model, test = digits_mlp(), digits("test")
    fit(model, digits("train"), method, Training(epochs=10, batch_size=64, lr=0.2), seed=0, out=tmp_path)
    with torch.inference_mode():
        accuracy = (model(test.x).argmax(1) == test.y).double().mean().item()
    assert accuracy > 0.9  # one class in ten by chance


# --- interruption -------------------------------------------------------------------------------------------------


def batch_normed() -> nn.Sequential:
    """A network whose buffers, too, must come back."""
    return nn.Sequential(
        Normalize([0.5], [0.5]), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


@pytest.mark.usefixtures("eager_saves")
@pytest.mark.parametrize("stop_before", [1, 5, 8, 11], ids=["first step", "mid-epoch", "epoch's end", "last step"])
@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({"optimizer": "sgd"}, digits_mlp),
        ({"optimizer": "sgd", "momentum": 0.0}, digits_mlp),
        ({"optimizer": "adam", "lr": 0.01, "schedule": "cosine"}, digits_mlp),
        ({"optimizer": "adam", "lr": 0.01}, batch_normed),
    ],
    ids=["momentum", "plain", "adam", "batch norm"],
)
def test_an_interruption_leaves_no_trace(tmp_path: Path, options: dict[str, Any], make: Any, stop_before: int) -> None:
    training = Training(epochs=3, batch_size=25, **options)
    whole = Recorder()
    expected = fit(make(), few(), whole, training, seed=2, out=tmp_path / "whole")

    out = tmp_path / "broken"
    before, after = Recorder(stop_before=stop_before), Recorder()
    with pytest.raises(Interrupted):
        fit(make(), few(), before, training, seed=2, out=out)
    assert {p.name for p in out.iterdir()} == ({STATE, HISTORY} if stop_before > 4 else {STATE})
    (out / (STATE + ".partial")).write_bytes(b"what a kill in the middle of a save leaves")
    resumed = fit(make(), few(), after, training, seed=2, out=out)

    assert before.labels + after.labels == whole.labels, "no step is done twice, none is left out"
    assert before.rates + after.rates == whole.rates
    assert resumed.read_bytes() == expected.read_bytes()
    assert (out / "config.json").read_bytes() == (expected.parent / "config.json").read_bytes()
    assert not (out / STATE).exists()
    assert timeless(out) == timeless(expected.parent)
    assert [row["epoch"] for row in timeless(out)] == [1, 2, 3]


@pytest.mark.usefixtures("eager_saves")
def test_a_kill_between_weights_and_config_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(epochs=2, batch_size=25)
    expected = fit(digits_mlp(), few(), Erm(), training, seed=2, out=tmp_path / "whole")

    def killed(path: Path, data: bytes) -> None:
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("paper_repro.models.checkpoint.write_atomically", killed)
        with pytest.raises(Interrupted):
            fit(digits_mlp(), few(), Erm(), training, seed=2, out=tmp_path / "broken")
    assert sorted(p.name for p in (tmp_path / "broken").iterdir()) == [HISTORY, STATE, "weights.safetensors"]
    resumed = fit(digits_mlp(), few(), Erm(), training, seed=2, out=tmp_path / "broken")
    assert resumed.read_bytes() == expected.read_bytes()
    assert load_weights(digits_mlp(), resumed)


def test_nothing_is_saved_before_its_time(tmp_path: Path) -> None:
    """With the period as it ships, a run of a moment writes no state: a kill restarts it."""
    assert fit_module._SAVE_EVERY_SECONDS >= 1
    with pytest.raises(Interrupted):
        fit(digits_mlp(), few(), Recorder(stop_before=3), Training(epochs=3, batch_size=25), seed=2, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    training = Training(epochs=1, batch_size=50)
    first = digits_mlp()
    path = fit(first, few(), Recorder(), training, seed=0, out=tmp_path)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    second = digits_mlp()
    assert fit(second, few(), Recorder(stop_before=0), training, seed=0, out=tmp_path) == path
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()} == before
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not second.training


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, r"\(seed: there 0, asked 1\); choose another folder$"),
    (
        {"method": NoiseAugmentation(Gaussian(0.5))},
        r"\(method: there 'Erm\(\)', asked 'NoiseAugmentation\(noise=Gaussian\(sigma=0\.5\)\)'\)",
    ),
    ({"names": ("m:g", "d")}, r"\(model: there 'm:f', asked 'm:g'\)"),
    ({"names": ("m:f", "e")}, r"\(data: there 'd', asked 'e'\)"),
    ({"data": few(99)}, r"\(data_sha256: there '[0-9a-f]{64}', asked '[0-9a-f]{64}'\)"),
    ({"training": Training(epochs=1, batch_size=20, lr=0.2)}, r"\(training: there .*'lr': 0\.1.*, asked .*'lr': 0\.2"),
    ({"seed": 1, "data": few(99)}, r"\(data_sha256: there .*; seed: there 0, asked 1\)"),
]


@pytest.mark.usefixtures("eager_saves")
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
@pytest.mark.parametrize(("other", "message"), OTHERS, ids=["seed", "method", "model", "data", "count", "lr", "two"])
def test_other_settings_in_the_same_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool, other: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {
        "data": few(),
        "method": Erm(),
        "training": Training(epochs=1, batch_size=20),
        "seed": 0,
        "names": ("m:f", "d"),
    }
    if finished:
        fit(digits_mlp(), out=tmp_path, **settings)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(fit_module, "_finished", lambda *_: False)
            patch.setattr(fit_module, "save_checkpoint", interrupt)
            with pytest.raises(Interrupted):
                fit(digits_mlp(), out=tmp_path, **settings)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert list(before) != [], "there is something to protect"
    with pytest.raises(InputError, match=r"holds a run with other settings " + message):
        fit(digits_mlp(), out=tmp_path, **{**settings, **other})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def interrupt(*_: object) -> None:
    raise Interrupted


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe"])
def test_a_damaged_config_is_refused(tmp_path: Path, content: bytes) -> None:
    fit(digits_mlp(), few(), Erm(), Training(epochs=1), seed=0, out=tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json is not a checkpoint's config \(.+\); choose another folder$"):
        fit(digits_mlp(), few(), Erm(), Training(epochs=1), seed=0, out=tmp_path)


@pytest.mark.usefixtures("eager_saves")
@pytest.mark.parametrize("keep", [0, 7, 200, -1], ids=["empty", "length", "header", "last byte"])
def test_a_damaged_state_is_refused(tmp_path: Path, keep: int) -> None:
    training = Training(epochs=1, batch_size=20)
    with pytest.raises(Interrupted):
        fit(digits_mlp(), few(), Recorder(stop_before=2), training, seed=0, out=tmp_path)
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"training\.safetensors is not the state of a training run \(.+\); remove it"):
        fit(digits_mlp(), few(), Recorder(), training, seed=0, out=tmp_path)


def test_somebody_elses_tensors_are_no_state(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / STATE)
    with pytest.raises(InputError, match=r"is not the state of a training run \(KeyError\('settings'\)\)"):
        fit(digits_mlp(), few(), Erm(), Training(epochs=1), seed=0, out=tmp_path)


def test_divergence_ends_the_run_without_a_checkpoint(tmp_path: Path) -> None:
    training = Training(epochs=4, batch_size=20, lr=1e30, schedule="constant")
    message = (
        r"^the loss is (nan|inf) at step [1-9]\d* of 20; nothing had been saved before; try a lower lr than 1e\+30,"
    )
    with pytest.raises(Diverged, match=message):
        fit(digits_mlp(), few(), Erm(), training, seed=0, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- kill -9 ------------------------------------------------------------------------------------------------------

# `python -m paper_repro`, saving after every step rather than every twenty seconds.
EAGER = (
    "import importlib, runpy;"
    "importlib.import_module('paper_repro.training.fit')._SAVE_EVERY_SECONDS = -1.0;"
    "runpy.run_module('paper_repro', run_name='__main__', alter_sys=True)"
)
STEPS = 6 * 45  # epochs, times 1,437 digits in batches of 32


def arguments(out: Path) -> list[str]:
    return [
        *("train", "--method", "gaussian", "--scale", "0.2", "--seed", "3", "--optimizer", "adam", "--lr", "0.01"),
        *("--data", "paper_repro.data:digits", "--model", "tests.networks:digits_mlp"),
        *("--epochs", "6", "--batch-size", "32", "--out", str(out)),
    ]


def step_on_disk(state: Path) -> int:
    """How far the saved state is; -1 where there is none."""
    try:
        # Not "pt": torch would open the path a second time to map it, and the file may have been replaced in between.
        with safe_open(state, "np") as file:
            return int(file.metadata()["step"])
    except (FileNotFoundError, SafetensorError):
        return -1


def steps_until_death(process: subprocess.Popen[bytes], state: Path) -> Iterator[int]:
    """The step on disk, again and again while the process lives."""
    deadline = time.monotonic() + 120
    while process.poll() is None:
        assert time.monotonic() < deadline, "the training does not get on"
        yield step_on_disk(state)
        time.sleep(0.001)


def test_killed_runs_end_in_the_same_weights(tmp_path: Path) -> None:
    """SIGKILL, three times, at moments that nobody chose; then the same command to the end."""
    whole = CliRunner().invoke(app, arguments(tmp_path / "whole"), catch_exceptions=False)
    assert whole.exit_code == 0

    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    moments = random.Random(0)
    reached = -1
    for target in (40, 110, 180):
        process = subprocess.Popen(
            [sys.executable, "-c", EAGER, *arguments(out)], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL
        )
        for step in steps_until_death(process, out / STATE):
            assert step >= reached, "a resumed run never goes back behind what was saved"
            if step >= target:
                time.sleep(moments.random() * 0.01)
                process.send_signal(signal.SIGKILL)
                process.wait()
        assert process.returncode == -signal.SIGKILL
        reached = step_on_disk(out / STATE)
        assert target <= reached < STEPS, "killed in the middle"
    resumed = CliRunner().invoke(app, arguments(out), catch_exceptions=False)
    assert resumed.exit_code == 0
    assert file_digest(out / "weights.safetensors") == file_digest(tmp_path / "whole" / "weights.safetensors")
    assert (out / "config.json").read_bytes() == (tmp_path / "whole" / "config.json").read_bytes()
    assert timeless(out) == timeless(tmp_path / "whole")


# --- what a method carries ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Carrier:
    """Meets each batch twice, and adds up what it met in a tensor that outlives the update."""

    replays: int = 2
    stop_before: int | None = field(default=None, repr=False)
    seen: list[tuple[int, list[int]]] = field(default_factory=list, repr=False)

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        if step.number == self.stop_before:
            raise Interrupted
        self.seen.append((step.number, y.tolist()))
        step.memory["sum"] = step.memory.get("sum", torch.zeros(1)) + y.float().sum() + x.sum()
        loss = Erm().update(model, optimizer, x + step.memory["sum"], y, step=step)
        return loss


def test_replays_meet_the_same_batch_and_count_as_steps(tmp_path: Path) -> None:
    method, data = Carrier(), few()
    fit(digits_linear(), data, method, Training(epochs=3, batch_size=10), seed=0, out=tmp_path)
    numbers, batches = zip(*method.seen, strict=True)
    assert numbers == tuple(range(3 * -(-len(data) // 10)))
    assert batches[::2] == batches[1::2]
    once = Carrier(replays=1)
    fit(digits_linear(), data, once, Training(epochs=3, batch_size=10), seed=0, out=tmp_path / "once")
    assert [b for _, b in once.seen][: len(batches[::2])] == list(batches[::2]), "the order does not depend on replays"


def test_what_a_method_carries_survives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "_SAVE_EVERY_SECONDS", 0.0)
    training = Training(epochs=2, batch_size=10)
    whole, parts = digits_linear(), digits_linear()
    fit(whole, few(), Carrier(), training, seed=0, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(parts, few(), Carrier(stop_before=3), training, seed=0, out=tmp_path / "parts")
    fit(parts, few(), Carrier(), training, seed=0, out=tmp_path / "parts")
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


# --- history, kept weights, fine-tuning, and what goes wrong -------------------------------------------------------


def test_the_history_has_what_each_update_was(tmp_path: Path) -> None:
    """Mean loss, and mean and standard deviation of the minibatches' gradient norms, against a loop by hand."""
    training = Training(epochs=2, batch_size=40, schedule="constant", momentum=0.0, weight_decay=0.0)
    seen = Recorder()
    fit(digits_linear(), few(), seen, training, seed=4, out=tmp_path)
    rows = read_history(tmp_path)
    model, data = digits_linear(), few()
    initialise(model, 4)
    losses: list[float] = []
    norms: list[float] = []
    for epoch in range(2):
        order = torch.randperm(100, generator=Stream(4).child("order", epoch).generator())
        for chosen in order.split(40):
            loss = torch.nn.functional.cross_entropy(model(data.x[chosen]), data.y[chosen])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
            losses.append(loss.item())
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p -= 0.1 * g
    for row, first in zip(rows, (0, 3), strict=True):
        assert row["loss"] == pytest.approx(np.mean(losses[first : first + 3]), rel=1e-5)
        assert row["gradient_norm"] == pytest.approx(np.mean(norms[first : first + 3]), rel=1e-5)
        assert row["gradient_norm_sd"] == pytest.approx(np.std(norms[first : first + 3]), rel=1e-3)
        assert row["seconds"] > 0
    assert [row["epoch"] for row in rows] == [1, 2]


def test_a_missing_or_damaged_history_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^need the history of a training run in .*history\.jsonl: "):
        read_history(tmp_path)
    (tmp_path / HISTORY).write_text("{")
    with pytest.raises(InputError, match=r"^need the history of a training run in .*history\.jsonl: "):
        read_history(tmp_path)


def test_weights_are_kept_at_the_epochs_asked_for(tmp_path: Path) -> None:
    """What is kept after an epoch of a constant rate is what a run of so many epochs ends with."""
    options: dict[str, Any] = {"batch_size": 40, "schedule": "constant"}
    path = fit(digits_mlp(), few(), Erm(), Training(epochs=3, keep=(2, 3), **options), seed=1, out=tmp_path / "long")
    short = fit(digits_mlp(), few(), Erm(), Training(epochs=2, **options), seed=1, out=tmp_path / "short")
    kept = path.parent / "epoch-2" / "weights.safetensors"
    assert kept.read_bytes() == short.read_bytes()
    assert (path.parent / "epoch-3" / "weights.safetensors").read_bytes() == path.read_bytes()
    assert not (path.parent / "epoch-1").exists()
    load_weights(digits_mlp(), kept)
    config = json.loads((kept.parent / "config.json").read_text())
    assert (config["epoch"], config["sha256"]) == (2, file_digest(kept))


def test_fine_tuning_starts_from_weights_known_by_their_digest(tmp_path: Path) -> None:
    first = fit(digits_mlp(), few(), Erm(), Training(epochs=1), seed=0, out=tmp_path / "first")
    tiny = Training(epochs=1, lr=1e-12, weight_decay=0.0)
    model = digits_mlp()
    path = fit(model, few(), Erm(), tiny, seed=7, out=tmp_path / "second", start=first)
    for a, b in zip(model.parameters(), load_weights(digits_mlp(), first).parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert json.loads((path.parent / "config.json").read_text())["start"] == file_digest(first)
    assert json.loads((first.parent / "config.json").read_text())["start"] is None
    with pytest.raises(
        InputError, match=r"holds a run with other settings \(start: there '[0-9a-f]{64}', asked None\)"
    ):
        fit(digits_mlp(), few(), Erm(), tiny, seed=7, out=tmp_path / "second")
    with pytest.raises(InputError, match=r"^need a weights file to start from; no file at .*nothing$"):
        fit(digits_mlp(), few(), Erm(), tiny, seed=7, out=tmp_path / "third", start=tmp_path / "nothing")


@dataclass(frozen=True)
class Poisoned:
    """Gives a loss that is no number at one step, having spoiled the weights at the one before."""

    at: int

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        loss = Erm().update(model, optimizer, x, y, step=step)
        if step.number == self.at - 1:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
        return loss


@pytest.mark.usefixtures("eager_saves")
def test_divergence_leaves_the_last_good_weights(tmp_path: Path) -> None:
    training = Training(epochs=4, batch_size=20)
    message = (
        r"^the loss is nan at step 7 of 20; the last good weights, after 6 steps, are (.*); try a lower lr than 0\.1"
    )
    with pytest.raises(Diverged, match=message):
        fit(digits_mlp(), few(), Poisoned(7), training, seed=0, out=tmp_path)
    kept = tmp_path / "step-6" / "weights.safetensors"
    assert all(bool(p.isfinite().all()) for p in load_weights(digits_mlp(), kept).parameters())
    assert not (tmp_path / "weights.safetensors").exists()


def test_weights_that_end_spoiled_are_no_checkpoint(tmp_path: Path) -> None:
    """The loss is the one before the update: the last update's damage shows in the weights alone."""
    with pytest.raises(Diverged, match=r"^a weight is not finite after epoch 1; nothing had been saved before; try a"):
        fit(digits_mlp(), few(), Poisoned(5), Training(epochs=1, batch_size=20), seed=0, out=tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()


def watched(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"epoch": i + 1, "fgsm_accuracy": f, "pgd_accuracy": p} for i, (f, p) in enumerate(pairs)]


def test_overfitting_to_one_step_is_recognised() -> None:
    assert overfitting(watched((0.5, 0.4), (0.9, 0.02))).startswith(
        "catastrophic overfitting: accuracy under PGD is 0.020 at epoch 2, after 0.400 at epoch 1; under FGSM it is 0.9"
    )
    assert overfitting(watched((0.5, 0.4), (0.6, 0.5))) == "", "both rise"
    assert overfitting(watched((0.5, 0.4), (0.5, 0.21))) == "", "not yet half"
    assert overfitting(watched((0.5, 0.4), (0.2, 0.1))) == "", "both fall: another trouble"
    assert overfitting([{"epoch": 1, "loss": 1.0}]) == "", "nothing watched"


@dataclass(frozen=True)
class Overfits:
    """Plain training that claims to lose its robustness in the second epoch."""

    def update(self, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, *, step: Step) -> Tensor:
        return Erm().update(model, optimizer, x, y, step=step)

    def watch(self, model: nn.Module, x: Tensor, y: Tensor, rng: Stream) -> dict[str, float]:
        assert not model.training
        assert len(x) == len(y) == 100
        late = rng.path[-1] == 2
        return {"fgsm_accuracy": 0.9 if late else 0.5, "pgd_accuracy": 0.0 if late else 0.4}


def test_overfitting_is_in_the_history_and_said_at_the_end(tmp_path: Path) -> None:
    training = Training(epochs=3, batch_size=40)
    for _ in range(2):  # the run, and then the finished folder
        with pytest.warns(
            CatastrophicOverfitting, match=r"^catastrophic overfitting: .* 0\.000 at epoch 2, after 0\.400"
        ):
            path = fit(digits_mlp(), few(), Overfits(), training, seed=0, out=tmp_path)
    rows = read_history(tmp_path)
    assert ["warning" in row for row in rows] == [False, True, False]
    # Nothing of it reaches the weights.
    plain = fit(digits_mlp(), few(), Erm(), training, seed=0, out=tmp_path / "plain")
    assert plain.read_bytes() == path.read_bytes()


def test_fast_training_watches_itself(tmp_path: Path) -> None:
    method = FastTraining(Threat("Linf", 0.1))
    fit(digits_mlp(), few(), method, Training(epochs=2, batch_size=50), seed=0, out=tmp_path)
    for row in read_history(tmp_path):
        assert 0 <= row["pgd_accuracy"] <= row["fgsm_accuracy"] <= 1
