"""Campaigns by workers of a Ray cluster: the rows of one process, bit for bit, whoever works and whoever dies."""

import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from analysis.attacks import APGD, PGD
from analysis.campaign import attack_campaign
from analysis.hessian import Hessian
from analysis.lanczos import Lanczos
from analysis.sharded_hessian import sharded_hessian
from certify import IBP, AdaptiveSmoothing, BaseClassifier, Certificate, Execution, Gaussian, Smoothing, Stream, Threat
from certify.__main__ import app
from certify.campaign import ray_executor, runner
from certify.campaign.attack_rows import AttackRows
from certify.campaign.cli import make_executor
from certify.campaign.executor import Executor, Portable, Results, Serial, Work
from certify.campaign.ray_executor import TRIES, RayWorkers
from certify.campaign.results import Results as Rows
from certify.campaign.store import Store
from certify.campaign.weights import load_weights
from certify.errors import InputError
from certify.verified_radius import Bisection
from paper_repro.data import digits
from paper_repro.training import NoiseAugmentation, Training, fit
from tests.networks import digits_mlp

ROOT = Path(__file__).resolve().parents[2]
METHOD = Smoothing(Gaussian(0.25), n0=20, n=500, alpha=0.01)
NAMES = ("tests.networks:digits_mlp", "paper_repro.data:digits test")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """What a worker computes with is what this process does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Room for four workers, on however many cores."""
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = Training(epochs=10, batch_size=64, lr=0.2)
    folder = tmp_path_factory.mktemp("trained")
    return fit(digits_mlp(), digits("train"), NoiseAugmentation(Gaussian(0.25)), training, seed=0, out=folder)


@pytest.fixture
def model(weights: Path) -> nn.Module:
    return load_weights(digits_mlp(), weights)


def rows(results: Rows) -> list[dict[str, Any]]:
    """All that is stored of each example but the seconds, and what determined it."""
    c = results.certificate
    named = zip(results.example.tolist(), results.label.tolist(), c.records(), strict=True)
    return [dict(results.settings), c.header(), *({"id": i, "label": y, **r} for i, y, r in named)]


def certified(store: Path, model: nn.Module, executor: Executor, **options: Any) -> Rows:
    settings: dict[str, Any] = {"method": METHOD, "names": NAMES, "indices": "0:45", "batch": 2, **options}
    return runner.run(store, model=model, data=digits(), executor=executor, **settings)


def verified(store: Path, model: nn.Module, executor: Executor) -> Rows:
    method = Bisection(IBP(Threat("Linf", 0.1)), steps=12)
    return runner.verify(store, method, model, digits(), names=NAMES, indices="0:50", batch=8, executor=executor)


def attacked(store: Path, model: nn.Module, executor: Executor) -> dict[str, list[Any]]:
    threat, ladder = Threat("Linf", 0.08), [PGD(3), APGD(5)]
    options: dict[str, Any] = {"names": NAMES, "threat": threat, "indices": "0:50", "block": 8}
    found = attack_campaign(store, ladder, model, digits(), executor=executor, **options).rows
    assert (found.seconds > 0).all()
    return {name: getattr(found, name).tolist() for name in AttackRows.__slots__ if name != "seconds"}


@dataclass(frozen=True)
class Elsewhere:
    """What any other process amounts to: copies of work, items and results, done last to first."""

    @contextmanager
    def __call__(self, work: Work) -> Iterator[Results]:
        arrived = pickle.loads(pickle.dumps(work))

        def results(items: Iterable[Any]) -> Iterator[tuple[int, Any, float]]:
            for number, item in reversed(list(enumerate(items))):
                yield number, pickle.loads(pickle.dumps(arrived(pickle.loads(pickle.dumps(item))))), 1.0

        yield results


# --- the same numbers, without a cluster --------------------------------------------------------------------------


def test_rows_do_not_depend_on_the_process_or_on_the_order(tmp_path: Path, model: nn.Module) -> None:
    for name, campaign in {"run": certified, "verify": verified}.items():
        here, there = (campaign(tmp_path / f"{name} {e!r}", model, e) for e in (Serial(), Elsewhere()))
        assert rows(here) == rows(there)
        assert set(there.seconds.tolist()) <= {1 / k for k in (1, 2, 8)}, "the seconds are those of the worker"
    assert attacked(tmp_path / "a", model, Serial()) == attacked(tmp_path / "b", model, Elsewhere())
    with closing(sqlite3.connect(tmp_path / "run Elsewhere()")) as database:
        ((environment,),) = database.execute("SELECT environment FROM session").fetchall()
    assert '"executor": "Elsewhere()"' in environment


def test_methods_that_stop_early_do_not_depend_on_it_either(tmp_path: Path, model: nn.Module) -> None:
    method = AdaptiveSmoothing(Gaussian(0.25), (0.0, 0.1, 0.2), n0=20, n_max=5000, alpha=0.01)
    options: dict[str, Any] = {"method": method, "batch": 7, "execution": Execution("bfloat16", rows=384)}
    here, there = (certified(tmp_path / repr(e), model, e, **options) for e in (Serial(), Elsewhere()))
    assert len(set(here.certificate.samples.tolist())) > 2, "the check is about more than one stopping time"
    assert rows(here) == rows(there)


def test_a_campaign_that_is_done_asks_nobody(tmp_path: Path, model: nn.Module) -> None:
    def nobody(work: Work) -> Any:
        raise AssertionError("no work is left")

    first = certified(tmp_path / "s", model, Serial())
    assert rows(certified(tmp_path / "s", model, nobody)) == rows(first)
    found = attacked(tmp_path / "a", model, Serial())
    assert attacked(tmp_path / "a", model, nobody) == found


def test_no_more_travels_than_there_is_to_do(tmp_path: Path, model: nn.Module) -> None:
    """A view of a tensor would take all of the tensor with it: here the whole data set, each time."""
    sizes: list[int] = []

    @contextmanager
    def measured(work: Work) -> Iterator[Results]:
        sizes.append(len(pickle.dumps(work)))

        def results(items: Iterable[Any]) -> Iterator[tuple[int, Any, float]]:
            for number, item in enumerate(items):
                sizes.append(len(pickle.dumps(item)))
                yield number, work(item), 1.0

        yield results

    certified(tmp_path / "s", model, measured)
    verified(tmp_path / "t", model, measured)
    attacked(tmp_path / "a", model, measured)
    assert max(sizes) < 20_000, "the network has 6 kB, a batch 2"
    x, y = digits().x, digits().y
    with sharded_hessian(model, x, y, executor=measured, batch=40) as operator:
        operator.matvec(torch.ones(100, operator.shape[0]).double()[7])
    assert sizes[-10] < 2 * x.numel() * 4, "every worker holds the examples, once"
    assert max(sizes[-9:]) < 8 * operator.shape[0] + 1000


def test_a_network_travels_without_its_device_and_stays_as_it_was() -> None:
    model = digits_mlp().eval()
    arrived = pickle.loads(pickle.dumps(Portable(model))).model
    assert not arrived.training
    assert repr(arrived) == repr(model)
    state = arrived.state_dict()
    assert all(torch.equal(v, state[k]) and v.data_ptr() != state[k].data_ptr() for k, v in model.state_dict().items())
    assert pickle.loads(pickle.dumps(Portable(nn.Flatten()))).device == torch.device("cpu")
    assert Portable(nn.Linear(2, 3, device="meta")).device == torch.device("meta")


def test_a_worker_that_evaluates_otherwise_is_refused(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code does not travel; where it cannot be made again, the settings would not be those of the rows."""
    monkeypatch.setattr(torch, "compile", lambda *_, **__: 1 / 0)
    with pytest.raises(
        InputError, match=r"^need workers that evaluate as the settings say, .*compiled=True.*; got .*Fa"
    ):
        runner._ready(METHOD, Portable(model), digits().x[:1], Execution(compiled=True))


# --- Hessian-vector products --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [7, 40, 200])
def test_products_add_up_to_those_of_one_process(model: nn.Module, dtype: torch.dtype, batch: int) -> None:
    x, y = digits().x[:150], digits().y[:150]
    whole = Hessian(model, x, y, batch=batch, dtype=dtype)
    v = torch.randn(whole.shape[0], 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for executor in (Serial(), Elsewhere()):
        with sharded_hessian(model, x, y, executor=executor, batch=batch, dtype=dtype) as operator:
            assert (operator.shape, operator.dtype, operator.device) == (whole.shape, whole.dtype, whole.device)
            assert torch.equal(operator.matmat(v), whole.matmat(v))
            assert torch.equal(operator.matvec(v[:, 0]), whole.matvec(v[:, 0]))
            assert operator.products == 4


def test_products_refuse_what_the_hessian_refuses(model: nn.Module) -> None:
    x, y = digits().x[:20], digits().y[:20]
    with sharded_hessian(model, x, y, executor=Serial(), parameters=["2.bias"]) as operator:
        assert operator.shape == (16, 16)
        with pytest.raises(InputError, match=r"^need a vector of 16 entries; got \(15,\)$"):
            operator.matvec(torch.ones(15))
        with pytest.raises(InputError, match=r"^need a matrix of 16 rows; got \(15, 1\)$"):
            operator.matmat(torch.ones(15, 1))
    with (
        pytest.raises(InputError, match="need a model in evaluation mode"),
        sharded_hessian(model.train(), x, y, executor=Serial()),
    ):
        pass


# --- a cluster ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("workers", [1, 2, pytest.param(4, marks=pytest.mark.long)])
def test_rows_are_those_of_one_process_whatever_the_number_of_workers(
    tmp_path: Path, model: nn.Module, workers: int
) -> None:
    expected = certified(tmp_path / "serial", model, Serial())
    assert len(set(expected.certificate.prediction.tolist())) > 3, "the check is about more than one class"
    assert rows(certified(tmp_path / "ray", model, RayWorkers(workers))) == rows(expected)


@dataclass(frozen=True)
class Waiting:
    """Work that takes the seconds it is given, and tells who did it with how many threads."""

    device: torch.device

    def __call__(self, item: float) -> tuple[float, int, int]:
        time.sleep(item)
        return item, os.getpid(), torch.get_num_threads()


@pytest.mark.usefixtures("cluster")
def test_items_are_handed_out_to_all_workers_and_come_back_with_their_numbers() -> None:
    items = [0.05 * k for k in range(7)]
    torch.set_num_threads(2)
    try:
        with RayWorkers(2)(Waiting(torch.device("cpu"))) as results:
            first, again = list(results(items)), list(results(items[:1]))
    finally:
        torch.set_num_threads(1)
    assert sorted(number for number, _, _ in first) == list(range(7))
    assert all(item == items[number] for number, (item, _, _), _ in first)
    assert all(items[number] <= seconds < 60 for number, _, seconds in first)
    assert {threads for _, (_, _, threads), _ in first} == {2}, "as many as this process"
    workers = {process for _, (_, process, _), _ in first}
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert {process for _, (_, process, _), _ in again} <= workers, "they stay until the block ends"


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_verification_attacks_and_products_by_two_workers(tmp_path: Path, model: nn.Module) -> None:
    executor = RayWorkers(2)
    assert rows(verified(tmp_path / "a", model, executor)) == rows(verified(tmp_path / "b", model, Serial()))
    assert attacked(tmp_path / "c", model, executor) == attacked(tmp_path / "d", model, Serial())
    x, y = digits().x[:100], digits().y[:100]
    alone = Lanczos(2)(Hessian(model, x, y, batch=30), rng=Stream(0))
    with sharded_hessian(model, x, y, executor=executor, batch=30) as operator:
        together = Lanczos(2)(operator, rng=Stream(0))
    assert torch.equal(alone.eigenvalues, together.eigenvalues)
    assert torch.equal(alone.eigenvectors, together.eigenvectors)


class Deadly:
    """A method that kills its process at one example, as often as it is told to; it leaves a mark each time."""

    def __init__(self, example: int, times: int, marks: Path) -> None:
        self.example, self.times, self.marks = example, times, marks

    def __call__(self, model: BaseClassifier, x: Tensor, *, rng: Sequence[Stream]) -> Certificate:
        if self.example in [stream.path[-1] for stream in rng]:
            with self.marks.open("a") as file:
                file.write("x")
            if self.marks.stat().st_size <= self.times:
                os.kill(os.getpid(), signal.SIGKILL)
        return METHOD(model, x, rng=rng)

    def __repr__(self) -> str:
        return repr(METHOD)


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_replaced_and_its_batch_done_again(tmp_path: Path, model: nn.Module) -> None:
    expected = certified(tmp_path / "serial", model, Serial())
    deadly = Deadly(digits().id[20].item(), 1, tmp_path / "marks")
    assert rows(certified(tmp_path / "ray", model, RayWorkers(2), method=deadly)) == rows(expected)
    assert (tmp_path / "marks").read_text() == "xx", "killed once, and done the second time"


@pytest.mark.long
@pytest.mark.usefixtures("cluster")
def test_a_batch_that_kills_every_worker_is_given_up(tmp_path: Path, model: nn.Module) -> None:
    deadly = Deadly(digits().id[20].item(), 99, tmp_path / "marks")
    with pytest.raises(ChildProcessError, match=rf"^a batch was handed out {TRIES} times and lost .*Ray says: .+"):
        certified(tmp_path / "s", model, RayWorkers(1), method=deadly)
    assert (tmp_path / "marks").read_text() == "x" * TRIES
    with Store(tmp_path / "s") as file:
        (partial,) = file.results()
    assert partial.example.tolist() == digits().id[:20].tolist(), "what was done before is kept"
    expected = certified(tmp_path / "serial", model, Serial())
    assert rows(certified(tmp_path / "s", model, Serial())) == rows(expected)


class Refusing:
    """A method that refuses, in its own words."""

    def __call__(self, model: BaseClassifier, x: Tensor, *, rng: Sequence[Stream]) -> Certificate:
        raise InputError("need another day; got this one")


@pytest.mark.usefixtures("cluster")
def test_a_refusal_comes_back_in_its_own_words(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^need another day; got this one$") as e:
        certified(tmp_path / "s", model, RayWorkers(1), method=Refusing())
    assert type(e.value) is InputError
    monkeypatch.setattr(ray_executor, "conditions", lambda _: "torch 0 on paper")
    with pytest.raises(
        InputError, match=r"^need workers like this process, torch 0 on paper: others .*; got torch 2\."
    ):
        certified(tmp_path / "t", model, RayWorkers(1))


@dataclass(frozen=True)
class OnGpu:
    """Work for a device that is not here."""

    device: torch.device

    def __call__(self, item: Any) -> Any:
        return item


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_room_is_refused(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^need room for 5 workers with 1 CPU each; the cluster has room for 4$"):
        certified(tmp_path / "s", model, RayWorkers(5))
    with pytest.raises(InputError, match=r"^need room for 1 workers with 1 GPU each; the cluster has room for 0$"):
        RayWorkers()(OnGpu(torch.device("cuda"))).__enter__()
    torch.set_num_threads(3)  # a worker takes a CPU for each
    try:
        with pytest.raises(InputError, match=r"^need room for 2 workers with 3 CPU each; the cluster has room for 1$"):
            certified(tmp_path / "t", model, RayWorkers(2))
    finally:
        torch.set_num_threads(1)


# --- command line -------------------------------------------------------------------------------------------------


def arguments(weights: Path, store: Path, *more: str) -> list[str]:
    return [
        *("run", "--model", NAMES[0], "--weights", str(weights), "--data", "paper_repro.data:digits"),
        *("--scale", "0.25", "--n", "20000", "--indices", "0:360:3", "--batch", "2", "--store", str(store), *more),
    ]


def test_what_is_no_executor_is_refused(tmp_path: Path, weights: Path) -> None:
    result = CliRunner().invoke(app, arguments(weights, tmp_path / "s", "--executor", "slurm"))
    assert result.exit_code == 2
    assert "'slurm' is not one of" in result.output
    assert list(tmp_path.iterdir()) == []
    for workers, address in ((2, None), (None, "auto")):
        with pytest.raises(InputError, match=r"^--workers and --address are for --executor ray; got serial$"):
            make_executor("serial", workers, address)
    with pytest.raises(InputError, match=r"^need workers >= 1; got 0$"):
        make_executor("ray", 0, None)


def test_without_ray_one_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "certify.campaign.ray_executor")
    with pytest.raises(InputError, match=r"^need ray, as installed by pip install 'robust-radius\[cluster\]', for the"):
        make_executor("ray", 2, None)


def stored(path: Path) -> int:
    """How many rows the file holds; 0 before it is one, or while its writer commits."""
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(path, timeout=0)) as database:
            return database.execute("SELECT count(*) FROM certificate").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


@pytest.mark.long
def test_a_killed_driver_goes_on_from_its_store(tmp_path: Path, weights: Path) -> None:
    """Each driver has a cluster of its own, which ends with it; the last one is a serial process."""
    invoke = CliRunner().invoke
    assert invoke(app, arguments(weights, tmp_path / "whole"), catch_exceptions=False).exit_code == 0
    store = tmp_path / "killed"
    for target in (5, 45):
        process = subprocess.Popen(
            [sys.executable, "-m", "certify", *arguments(weights, store, "--executor", "ray", "--workers", "2")],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 300
        while process.poll() is None and stored(store) < target:
            assert time.monotonic() < deadline, "the campaign does not get on"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "killed before its end"
        assert target <= stored(store) < 120
        assert stored(store) % 2 == 0, "a batch of two is there whole or not at all"
    assert invoke(app, arguments(weights, store), catch_exceptions=False).exit_code == 0
    with Store(store) as killed, Store(tmp_path / "whole") as whole:
        (resumed,), (expected,) = killed.results(), whole.results()
    assert rows(resumed) == rows(expected)
    with closing(sqlite3.connect(store)) as database:
        assert database.execute("SELECT count(DISTINCT session) FROM certificate").fetchone() == (3,)
