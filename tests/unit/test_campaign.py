"""Campaigns: the same rows whatever the batches, the order, the sessions and the kills between them."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from certify import BaseClassifier, Certificate, Execution, Gaussian, InputError, Smoothing, Stream
from certify.__main__ import app
from certify.campaign import Results, Store, run
from certify.campaign.runner import select
from certify.campaign.weights import load_weights
from paper_repro.data import Data, digits
from paper_repro.training import NoiseAugmentation, Training, fit
from tests.networks import digits_linear, digits_mlp

ROOT = Path(__file__).resolve().parents[2]
METHOD = Smoothing(Gaussian(0.25), n0=20, n=200, alpha=0.01)
NAMES = ("tests.networks:digits_mlp", "paper_repro.data:digits test")

Row = tuple[int, int, float, tuple[int, ...]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for a second thread; and counts may depend on how many threads there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that was trained in noise: certificates of every kind, abstentions and errors among them."""
    training = Training(epochs=10, batch_size=64, lr=0.2)
    folder = tmp_path_factory.mktemp("trained")
    return fit(digits_mlp(), digits("train"), NoiseAugmentation(Gaussian(0.25)), training, seed=0, out=folder)


@pytest.fixture
def model(weights: Path) -> nn.Module:
    return load_weights(digits_mlp(), weights)


def rows(results: Results) -> dict[int, Row]:
    """What is certified of each example; the wall clock is nobody's business."""
    c = results.certificate
    assert c.counts is not None
    return {
        int(example): (int(results.label[i]), int(c.prediction[i]), float(c.radius[i]), tuple(c.counts[i].tolist()))
        for i, example in enumerate(results.example)
    }


def campaign(store: Path, model: nn.Module, **options: Any) -> Results:
    settings: dict[str, Any] = {"method": METHOD, "data": digits(), "names": NAMES, "indices": "0:20", **options}
    return run(store, model=model, **settings)


class Watched:
    """A method that keeps the ids it was asked about, and fails where it is told to; under the method's own name."""

    def __init__(self, method: Smoothing = METHOD, *, fail_after: int | None = None) -> None:
        self.method, self.fail_after, self.asked = method, fail_after, []

    def __call__(self, model: BaseClassifier, x: Tensor, *, rng: Sequence[Stream]) -> Certificate:
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise RuntimeError("the machine is on fire")
        self.asked += [stream.path[-1] for stream in rng]
        return self.method(model, x, rng=rng)

    def __repr__(self) -> str:
        return repr(self.method)


# --- the numbers --------------------------------------------------------------------------------------------------


def test_rows_are_what_the_method_says(tmp_path: Path, model: nn.Module) -> None:
    """Example by example, without store, batches or runner; the stream is named by the example's id."""
    data = digits()
    results = campaign(tmp_path / "s", model, indices="3:60:4", seed=11)
    found = rows(results)
    assert list(found) == data.id[3:60:4].tolist()
    for position, example in zip(range(3, 60, 4), found, strict=True):
        c = METHOD(model, data.x[position][None], rng=[Stream(11).child(example)])
        assert c.counts is not None
        assert found[example] == (
            int(data.y[position]),
            int(c.prediction),
            float(c.radius),
            tuple(c.counts[0].tolist()),
        )
    predictions = {prediction for _, prediction, _, _ in found.values()}
    assert len(predictions) > 3, "the check is about more than one class"
    assert results.certificate.samples.tolist() == [220] * len(found)
    assert (results.seconds > 0).all()


@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_rows_do_not_depend_on_the_batch(tmp_path: Path, model: nn.Module, batch: int) -> None:
    assert rows(campaign(tmp_path / "s", model, batch=batch)) == rows(campaign(tmp_path / "t", model, batch=20))


def test_rows_do_not_depend_on_the_other_examples_or_on_their_order(tmp_path: Path, model: nn.Module) -> None:
    whole = rows(campaign(tmp_path / "whole", model, indices="0:20:1"))
    half = rows(campaign(tmp_path / "half", model, indices="0:20:2"))
    assert half == {example: whole[example] for example in digits().id[0:20:2].tolist()}

    data = digits()
    backwards = Data(data.x.flip(0), data.y.flip(0), data.id.flip(0))
    assert rows(campaign(tmp_path / "backwards", model, data=backwards, indices="-20:")) == whole


def test_rows_depend_on_the_seed(tmp_path: Path, model: nn.Module) -> None:
    first, second = (rows(campaign(tmp_path / str(seed), model, seed=seed)) for seed in (0, 1))
    differing = [example for example in first if first[example][3] != second[example][3]]
    assert len(differing) > len(first) / 2, "new noise gives new counts, save where all votes agree"


def test_the_caller_keeps_model_and_generators_as_they_were(tmp_path: Path, model: nn.Module) -> None:
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    campaign(tmp_path / "s", model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


# --- sessions -----------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_computed_again(tmp_path: Path, model: nn.Module) -> None:
    whole = rows(campaign(tmp_path / "whole", model))
    ids, store = digits().id.tolist(), tmp_path / "pieces"
    sessions = [("10:15", [10, 11, 12, 13, 14]), ("0:20:3", [0, 3, 6, 9, 15, 18]), ("0:4", [1, 2]), ("0:4", [])]
    held = 0
    for indices, new in sessions:
        watched = Watched()
        results = campaign(store, model, indices=indices, method=watched, batch=2)
        assert watched.asked == [ids[position] for position in new]
        held += len(new)
        assert len(results.example) == held, "results hold the rows of earlier sessions too"
    rest = Watched()
    assert rows(campaign(store, model, method=rest)) == whole
    assert len(rest.asked) == 20 - held


def test_a_method_that_fails_loses_nothing_written(tmp_path: Path, model: nn.Module) -> None:
    whole = rows(campaign(tmp_path / "whole", model))
    store = tmp_path / "broken"
    with pytest.raises(RuntimeError, match=r"^the machine is on fire$"):
        campaign(store, model, method=Watched(fail_after=9), batch=3)
    with Store(store) as file:
        (partial,) = file.results()
    assert rows(partial) == dict(list(whole.items())[:9])
    rest = Watched()
    assert rows(campaign(store, model, method=rest, batch=4)) == whole
    assert rest.asked == list(whole)[9:]


def test_duplicates_are_not_written_twice(tmp_path: Path, model: nn.Module) -> None:
    """Two sessions that certify the same examples, each unaware of the other: the file keeps the first row."""
    results = campaign(tmp_path / "s", model, indices="0:6")
    with Store(tmp_path / "s") as file:
        record = file.open_run(results.settings, {})
        again = METHOD(model, digits().x[:6], rng=Stream(99))  # other votes: the rows are not even the same
        record.append(again, results.example.tolist(), [0] * 6, seconds=1.0)
        (after,) = file.results()
    assert rows(after) == rows(results)
    assert after.seconds.tolist() == results.seconds.tolist()


def test_progress_is_told_where_there_is_no_terminal(
    tmp_path: Path, model: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign(tmp_path / "s", model, indices="0:10", batch=5)
    campaign(tmp_path / "s", model, indices="0:20", batch=5)
    out, err = capsys.readouterr()
    assert out == "", "standard output is for results"
    told = [line.split(": ")[1].split()[0] for line in err.splitlines() if line]
    assert told == ["5/10", "10/10", "15/20", "20/20"], "a resumed campaign counts on from where it stopped"


# --- settings -----------------------------------------------------------------------------------------------------


def other_model() -> nn.Module:
    torch.manual_seed(0)
    return digits_mlp().eval()


def other_data() -> Data:
    data = digits()
    x = data.x.clone()
    x[-1, 0, 0, 0] += 0.5  # an example that is not even chosen: a different data set nevertheless
    return Data(x, data.y, data.id)


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        ({"method": Smoothing(Gaussian(0.25), n0=20, n=201, alpha=0.01)}, ["method"]),
        ({"method": Smoothing(Gaussian(0.5), n0=20, n=200, alpha=0.01)}, ["method"]),
        ({"seed": 1}, ["seed"]),
        ({"model": other_model()}, ["model_sha256"]),
        ({"model": digits_linear().eval(), "names": ("a:b", NAMES[1])}, ["model", "model_sha256"]),
        ({"data": other_data()}, ["data_sha256"]),
        ({"data": digits("train"), "names": (NAMES[0], "train")}, ["data", "data_sha256"]),
        ({"execution": Execution(rows=384)}, ["execution"]),
        ({"execution": Execution(precision="bfloat16")}, ["execution"]),
    ],
    ids=["votes", "sigma", "seed", "weights", "network", "pixel", "split", "rows", "precision"],
)
def test_other_settings_are_refused_unless_added(
    tmp_path: Path, model: nn.Module, changed: dict[str, Any], keys: list[str]
) -> None:
    store = tmp_path / "s"
    original = rows(campaign(store, model, indices="0:3"))
    differences = "; ".join(rf"{key}: stored .+, asked .+" for key in keys)
    with pytest.raises(
        InputError, match=rf"holds a run with other settings \({differences}\)\. Settings never mix"
    ) as e:
        campaign(store, **{"model": model, "indices": "0:3", **changed})
    assert str(e.value).count(": stored ") == len(keys), "nothing else differs"
    added = campaign(store, **{"model": model, "indices": "0:2", "add": True, **changed})
    assert len(added.example) == 2
    with Store(store) as file:
        first, second = file.results()
    assert rows(first) == original
    assert rows(second) == rows(added)


def test_settings_hold_all_that_determines_the_numbers(tmp_path: Path, model: nn.Module) -> None:
    settings = campaign(tmp_path / "s", model, indices="0:1", seed=4).settings
    assert (settings["model"], settings["data"], settings["seed"]) == (*NAMES, 4)
    assert settings["method"] == repr(METHOD)
    assert settings["execution"] == repr(Execution())
    assert (settings["torch"], settings["device"]) == (torch.__version__, "cpu")
    assert len(settings["model_sha256"]) == len(settings["data_sha256"]) == 64


@pytest.mark.parametrize("indices", ["", "7", "a:b", "0:10:0", "::-1", "1:2:3:4", "0.5:3", "0:10:20:", "0-10"])
def test_indices_that_are_no_slice_are_refused(indices: str) -> None:
    with pytest.raises(InputError, match=r"^need indices start:stop:step with step >= 1, such as .*; got '"):
        select(digits(), indices)


@pytest.mark.parametrize("indices", ["0:0", "400:500", "5:3"])
def test_an_empty_choice_is_refused(indices: str) -> None:
    with pytest.raises(InputError, match=rf"^need at least one example; '{indices}' selects none of 360$"):
        select(digits(), indices)


@pytest.mark.parametrize(
    ("indices", "positions"),
    [(":", range(360)), ("0:10:4", [0, 4, 8]), ("-2:", [358, 359]), ("358:1000", [358, 359]), ("::200", [0, 200])],
)
def test_indices_are_positions_and_rows_carry_ids(indices: str, positions: Sequence[int]) -> None:
    data = digits()
    x, y, ids = select(data, indices)
    assert ids == [5 * p for p in positions], "every fifth scan is a test one"
    assert torch.equal(x, data.x[list(positions)])
    assert torch.equal(y, data.y[list(positions)])


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_holds_an_example(tmp_path: Path, model: nn.Module, batch: int) -> None:
    with pytest.raises(InputError, match=rf"^need batch >= 1; got {batch}$"):
        campaign(tmp_path / "s", model, batch=batch)


def test_a_model_in_training_mode_is_refused_before_a_file_is_made(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^need a model in evaluation mode, call model\.eval\(\)"):
        campaign(tmp_path / "s", model.train())
    assert list(tmp_path.iterdir()) == []


# --- kill -9 ------------------------------------------------------------------------------------------------------

EXAMPLES = 120


def arguments(weights: Path, store: Path) -> list[str]:
    return [
        *(
            "run",
            "--model",
            "tests.networks:digits_mlp",
            "--weights",
            str(weights),
            "--data",
            "paper_repro.data:digits",
        ),
        *("--scale", "0.25", "--n", "20000", "--alpha", "0.001", "--indices", "0:360:3", "--seed", "5"),
        *("--batch", "2", "--store", str(store)),
    ]


def stored(path: Path) -> int:
    """How many rows the file holds; 0 before it is one, or while its writer commits."""
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(path, timeout=0)) as database:
            return database.execute("SELECT count(*) FROM certificate").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def test_killed_campaigns_end_in_the_same_rows(tmp_path: Path, weights: Path) -> None:
    """SIGKILL, five times, at moments that nobody chose; then the same command to the end."""
    runner = CliRunner()
    assert runner.invoke(app, arguments(weights, tmp_path / "whole"), catch_exceptions=False).exit_code == 0
    with Store(tmp_path / "whole") as file:
        (whole,) = file.results()
    expected = rows(whole)
    assert list(expected) == digits().id[::3].tolist()

    store = tmp_path / "killed"
    moments, reached = random.Random(0), 0
    for target in (5, 25, 45, 65, 85):
        process = subprocess.Popen(
            [sys.executable, "-m", "certify", *arguments(weights, store)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and stored(store) < target:
            assert time.monotonic() < deadline, "the campaign does not get on"
            time.sleep(0.002)
        time.sleep(moments.random() * 0.05)  # somewhere in the next batches: voting, writing or in between
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "killed before its end"
        with Store(store) as file:
            (partial,) = file.results()
        found = rows(partial)
        assert reached < target <= len(found) < EXAMPLES
        assert len(found) % 2 == 0, "a batch of two is there whole or not at all"
        assert found.items() <= expected.items()
        reached = len(found)
    assert runner.invoke(app, arguments(weights, store), catch_exceptions=False).exit_code == 0
    with Store(store) as file:
        (resumed,) = file.results()
    assert resumed.example.tolist() == whole.example.tolist(), "each example exactly once"
    assert rows(resumed) == expected
    assert resumed.settings == whole.settings
    with closing(sqlite3.connect(store)) as database:
        sessions = database.execute("SELECT count(DISTINCT session) FROM certificate").fetchone()
    assert sessions == (6,), "five killed sessions and the last one all wrote"
