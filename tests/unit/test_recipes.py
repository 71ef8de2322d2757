"""Recipes: statistics with both uncertainties, verdicts on claims, stages that run once, records that are whole."""

import importlib
import json
import math
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from certify import Execution, Gaussian, InputError, PerExample, RenyiSmoothing, Smoothing, Stream, Threat
from certify.campaign.weights import tensor_digest
from paper_repro.__main__ import app
from paper_repro.commands import recipes as command
from paper_repro.data import Data, digits
from paper_repro.recipes import (
    RECIPES,
    Recipe,
    deep_defense,
    free_at,
    smoothing_vs_ibp,
    stability,
    training_methods,
)
from paper_repro.recipes.bench import Bench, Setting, spaced
from paper_repro.recipes.checklist import flags, masking_record, masking_table
from paper_repro.recipes.execute import MANIFEST, commit, execute
from paper_repro.recipes.loss_landscape_stages import WARMED
from paper_repro.recipes.recipe import SCALES, Above, Claim, Near
from paper_repro.recipes.records import NotRecorded, Record, Records, gather
from paper_repro.recipes.report import judge, report
from paper_repro.recipes.statistics import (
    Measured,
    average,
    between_trainings,
    difference,
    exactly,
    mean_of,
    over_seeds,
    ratio,
    share,
)
from paper_repro.training import Erm, FreeTraining, Training
from paper_repro.training.cost import measure
from tests.networks import digits_linear, digits_mlp

execute_module = importlib.import_module("paper_repro.recipes.execute")

SETTING = Setting("paper_repro.data:digits", "tests.networks:digits_linear", 100, 10, (0, 1, 2))

TRAINING = Training(epochs=2, batch_size=50)


# Statistics.


def test_a_share_shows_the_seeds_and_holds_the_exact_interval_of_every_seed() -> None:
    hits = np.zeros((2, 10), bool)
    hits[0, :5] = True
    hits[1, :7] = True
    # Clopper-Pearson at 95 %: (5, 10) gives [0.18709, 0.81291], (7, 10) gives [0.34755, 0.93326].
    assert share(hits) == "0.6000 +- 0.1414 [0.1870, 0.9333]"


def test_one_seed_has_no_deviation() -> None:
    assert average([0.25]) == "0.2500"
    assert average([0.0, 1.0]) == "0.5000 +- 0.7071"


def test_the_difference_of_constants_is_exact() -> None:
    first, second = np.full((3, 20), 1.5), np.full((3, 20), 1.0)
    assert difference(first, second) == Measured(0.5, 0.5, 0.5)


def test_the_interval_of_a_difference_of_numbers_is_normal_over_images() -> None:
    gaps = np.array([[0.0, 1.0, 0.0, 1.0]])
    found = difference(gaps, np.zeros((1, 4)))
    half = 1.959963985 * np.std([0, 1, 0, 1], ddof=1) / 2
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_an_interval_holds_what_every_seed_says() -> None:
    """Images alone would leave none: the mean over seeds is 1 on every image."""
    gaps = np.array([[0.0] * 5, [2.0] * 5])
    assert difference(gaps, np.zeros((2, 5))) == Measured(1.0, 0.0, 2.0)
    assert ratio(gaps + 1, np.ones((2, 5))) == Measured(2.0, 1.0, 3.0)
    assert over_seeds([1.0, 4.0, 7.0]) == Measured(4.0, 1.0, 7.0, "seeds")


def test_the_interval_of_a_ratio_covers_and_shrinks() -> None:
    rng = np.random.default_rng(1)
    before = rng.uniform(0.5, 1.5, (1, 400))
    exact = ratio(1.4 * before, before)
    assert (exact.low, exact.value, exact.high) == pytest.approx((1.4, 1.4, 1.4))
    noisy = ratio(1.4 * before + 0.1 * rng.normal(size=before.shape), before)
    assert noisy.low < noisy.value < noisy.high
    # The error of the mean of 400 draws with deviation 0.1, over a mean of 1; twice 1.96 of them.
    assert noisy.high - noisy.low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.2)


def test_the_ratio_of_infinite_distances_is_no_number() -> None:
    lost = np.array([[1.0, np.inf]])
    assert not math.isfinite(ratio(lost, np.ones((1, 2))).value)
    assert math.isnan(ratio(lost, lost).value)


def test_the_interval_of_a_mean_holds_those_of_all_seeds() -> None:
    """Averaged image by image the seeds would leave no width; each of them has one, about its own mean."""
    values = np.array([[0.0, 2.0], [2.0, 0.0]])
    half = 1.959963985 * np.std([0, 2], ddof=1) / np.sqrt(2)
    assert mean_of(values) == f"1.0000 +- 0.0000 [{1 - half:.4f}, {1 + half:.4f}]"
    apart = np.array([[0.0] * 5, [2.0] * 5])
    assert mean_of(apart) == "1.0000 +- 1.4142 [0.0000, 2.0000]"


def test_the_interval_of_a_difference_of_hits_has_a_width_where_all_images_agree() -> None:
    """Half a pair more in each of the four cells; with many images that is next to the normal interval."""
    agreed = difference(np.zeros((1, 20), bool), np.zeros((1, 20), bool))
    assert (agreed.value, agreed.high) == (0.0, -agreed.low)
    assert agreed.high == pytest.approx(1.959963985 * 1 / 22)
    first, second = np.zeros((1, 1600), bool), np.zeros((1, 1600), bool)
    first[0, :66] = second[0, 66:115] = True
    found = difference(first, second)
    shares = np.array([66.5, 49.5]) / 1602
    half = 1.959963985 * math.sqrt((shares.sum() - np.subtract(*shares) ** 2) / 1602)
    middle = np.subtract(*shares)
    assert (found.value, found.low, found.high) == pytest.approx((17 / 1600, middle - half, middle + half))
    normal = difference(first.astype(float), second.astype(float))
    assert (found.low, found.high) == pytest.approx((normal.low, normal.high), abs=3e-4)


def test_the_interval_of_a_difference_covers_where_seeds_vary() -> None:
    """True difference 0; every seed's own lies about it as far as the mean over images does. Nominal: 95 %."""
    rng, covered, runs = np.random.default_rng(5), 0, 300
    for _ in range(runs):
        images, seeds = rng.normal(size=200), rng.normal(size=(3, 1)) / np.sqrt(200)
        found = difference(images + seeds + rng.normal(size=(3, 200)), np.zeros((3, 200)))
        covered += found.low <= 0 <= found.high
    assert covered / runs > 0.95


def test_one_seed_decides_no_order_between_trainings() -> None:
    first, second = np.full((1, 20), 2.0), np.full((1, 20), 1.0)
    with pytest.raises(NotRecorded, match=r"^1 \[1, 1\] over images, one seed, and two seeds of one training"):
        between_trainings(first, second)
    both = np.full((2, 20), 2.0), np.full((2, 20), 1.0)
    assert between_trainings(*both) == difference(*both)


# Claims.


def claim(expected: Near | Above, measured: Measured, tag: str = "D") -> Claim:
    return Claim("text", "source", tag, expected, lambda _: measured, ("small",))  # pyright: ignore[reportArgumentType]


RECORDS = Records(Path("nowhere"))


@pytest.mark.parametrize(
    ("expected", "measured", "state"),
    [
        (Near(1.0, 0.5), exactly(1.5), "reproduced"),
        (Near(1.0, 0.5), exactly(1.51), "deviates"),
        (Near(1.0, 0.5), exactly(math.nan), "deviates"),
        (Above(0.0), Measured(1.0, 0.1, 2.0), "reproduced"),
        (Above(0.0), Measured(1.0, 0.0, 2.0), "deviates"),
        (Above(0.0), Measured(-1.0, -2.0, 0.0), "deviates"),
        (Above(1.0), Measured(math.inf, math.nan, math.nan), "deviates"),
    ],
)
def test_a_claim_ends_as_its_rule_says(expected: Near | Above, measured: Measured, state: str) -> None:
    assert claim(expected, measured).judge(RECORDS, "small").state == state


def test_a_verdict_says_why() -> None:
    near = claim(Near(2.0, 0.1), exactly(3.0)).judge(RECORDS, "small").because
    assert near == "3, where 2 +- 0.1 was expected"
    weak = claim(Above(), Measured(0.5, -0.1, 1.0)).judge(RECORDS, "small").because
    assert weak.endswith("where > 0 was expected; the interval does not exclude it")
    weaker = claim(Above(), Measured(-0.5, -1.1, 0.1)).judge(RECORDS, "small").because
    assert weaker.endswith("where > 0 was expected; the interval does not exclude it")
    wrong = claim(Above(), Measured(-0.5, -1.0, -0.1)).judge(RECORDS, "small").because
    assert wrong == "-0.5 [-1, -0.1] over images and seeds, where > 0 was expected"
    known = replace(claim(Above(), Measured(-0.5, -1.0, -0.1)), reasons={"small": "too few epochs"})
    assert known.judge(RECORDS, "small").because == f"{wrong}; too few epochs"
    none = claim(Above(), Measured(math.inf, 1.0, math.inf)).judge(RECORDS, "small")
    assert none.state == "reproduced"
    lost = claim(Above(), Measured(math.nan, math.nan, math.nan)).judge(RECORDS, "small").because
    assert lost.startswith("there is no number")


def test_a_claim_ends_as_not_run_at_another_scale_or_without_its_record(tmp_path: Path) -> None:
    elsewhere = claim(Above(), exactly(1.0)).judge(RECORDS, "smoke")
    assert (elsewhere.state, elsewhere.because) == ("not run", "meant for small; these records are of smoke")
    missing = replace(claim(Above(), exactly(1.0)), measure=lambda r: exactly(r["grid"].arrays["x"][0]))
    verdict = missing.judge(Records(tmp_path), "small")
    assert (verdict.state, verdict.because) == ("not run", f"no record of grid in {tmp_path.name}")


def test_a_recalled_number_says_so() -> None:
    assert claim(Near(1, 0), exactly(1), "C").cited == "source [C, recalled, not published]"
    assert claim(Near(1, 0), exactly(1), "A").cited == "source [A]"
    assert (claim(Near(1, 0), exactly(1)).kind, claim(Above(), exactly(1)).kind) == ("cell", "order")


def test_misuse_of_claims_and_recipes() -> None:
    with pytest.raises(InputError, match=r"need a tag among A, B, C, D; got 'E'"):
        claim(Above(), exactly(1), "E")
    with pytest.raises(InputError, match=rf"need scales among {', '.join(SCALES)}; got \('huge',\)"):
        replace(claim(Above(), exactly(1)), scales=("huge",))
    with pytest.raises(InputError, match=f"need smoke and no scales but {', '.join(SCALES)}; got small"):
        recipe({}, scales=("small",))
    with pytest.raises(InputError, match=r"need smoke and no scales but .*; got smoke, huge"):
        recipe({}, scales=("smoke", "huge"))
    with pytest.raises(InputError, match="need a scale among smoke, small, paper; got 'huge'"):
        recipe({}).configuration("huge")


# The recipes as declared.


@pytest.mark.parametrize(
    "manifest", sorted(command.RESULTS.glob(f"*/*/{MANIFEST}")), ids=lambda p: p.parent.parent.name
)
def test_what_deviates_says_why(manifest: Path) -> None:
    """Of the claims on committed records."""
    name, scale = manifest.parent.parent.name, manifest.parent.name
    if name in RECIPES:
        for c, verdict in zip(RECIPES[name].claims, judge(RECIPES[name], Records(manifest.parent), scale), strict=True):
            assert verdict.state != "deviates" or c.reasons.get(scale), c.text


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_declares_what_a_reviewer_asks(name: str) -> None:
    declared = RECIPES[name]
    assert declared.name == name
    assert declared.deviations
    for scale in set(declared.scales) - {"smoke", "table"}:
        assert len(declared.configuration(scale).setting.seeds) >= 3, "error bars need three seeds"
    assert {c.kind for c in declared.claims} == {"cell", "order"}
    assert len({c.text for c in declared.claims}) == len(declared.claims)
    for c in declared.claims:
        assert ("recalled" in c.cited) == (c.tag == "C")


def test_costs_are_measured_at_full_budgets_whatever_the_ramps_of_training() -> None:
    config = RECIPES["training_methods"].configuration("small")
    assert any(getattr(method, "ramp", None) for method, _ in config.adversarial.values())
    methods = {name: training_methods._begun(method) for name, (method, _) in config.adversarial.items()}
    data = spaced(digits("train"), 50)
    found = measure(methods, digits_mlp, data, Training(epochs=1, batch_size=25), updates=1)
    passes = {name: cost.forwards for name, cost in found.items()}
    assert passes == {"plain": 1, "one step": 2, "PGD-7": 8, "TRADES-10": 13, "Free-4": 1}


# Records.


def test_rows_are_found_by_name_and_by_role() -> None:
    record = Record({"v": np.array([[1, 2], [3, 4]])}, {"names": ["a", "b"], "roles": {"best": "b"}})
    assert record.of("v", "a").tolist() == [1, 2]
    assert record.of("v", "best").tolist() == [3, 4]
    with pytest.raises(NotRecorded, match="no v of 'c' is recorded"):
        record.of("v", "c")
    with pytest.raises(NotRecorded, match="no w of 'a' is recorded"):
        record.of("w", "a")


def test_gather_stacks_names_seeds_and_the_rest() -> None:
    def measure(name: str, seed: int) -> dict[str, object]:
        return {"scalar": seed, "row": [len(name), seed, 7]}

    found = gather(["x", "yy"], (3, 5), measure)  # pyright: ignore[reportArgumentType]
    assert found["scalar"].tolist() == [[3, 5], [3, 5]]
    assert found["row"].tolist() == [[[1, 3, 7], [1, 5, 7]], [[2, 3, 7], [2, 5, 7]]]


def test_gather_tells_of_every_cell_and_of_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 20.0, 60.0, 80.0])
    monkeypatch.setattr("paper_repro.recipes.records.time", SimpleNamespace(monotonic=lambda: next(clock)))
    gather(["x", "y"], (3, 5), lambda name, seed: {"a": 0.0})
    assert capsys.readouterr().err.splitlines() == [
        "x, seed 3: 1/4 30 s left",
        "x, seed 5: 2/4 20 s left",
        "y, seed 3: 3/4 20 s left",
        "y, seed 5: 4/4 0 s left",
    ]


def test_records_come_back_as_written(tmp_path: Path) -> None:
    records = Records(tmp_path)
    arrays = {"hits": np.array([True, False]), "far": np.array([np.inf, 0.5]), "flipped": np.eye(3)[::-1]}
    records.write("stage", Record(arrays, {"names": ["a"]}), {"recipe": "r"})
    read = records["stage"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array)
    assert read.notes == {"names": ["a"], "recipe": "r"}
    assert [p.name for p in tmp_path.iterdir()] == ["stage.npz"], "no partial file is left"


# The bench.


def test_misuse_of_settings() -> None:
    with pytest.raises(InputError, match="need at least one image of each split; got 0 and 10"):
        replace(SETTING, train=0)
    with pytest.raises(InputError, match="need at least one image of each split; got 100 and 0"):
        replace(SETTING, test=0)
    with pytest.raises(InputError, match=r"need distinct seeds, at least one; got \(1, 1\)"):
        replace(SETTING, seeds=(1, 1))
    with pytest.raises(InputError, match=r"need distinct seeds, at least one; got \(\)"):
        replace(SETTING, seeds=())


def test_images_are_spaced_evenly() -> None:
    data = digits("test")
    chosen = spaced(data, 9)
    assert len(chosen) == 9
    assert chosen.id.tolist() == [int(data.id[k * len(data) // 9]) for k in range(9)]
    assert spaced(data, None) is data
    with pytest.raises(InputError, match=f"need at most the {len(data)} examples there are; got {len(data) + 1}"):
        spaced(data, len(data) + 1)


@dataclass(frozen=True, slots=True)
class Small:
    setting: Setting = SETTING
    training: Training = TRAINING


def bench(tmp_path: Path) -> Bench:
    return Bench.open(Small(), work=tmp_path / "work", results=tmp_path, device=torch.device("cpu"))


def test_a_network_is_trained_once(tmp_path: Path) -> None:
    place = bench(tmp_path)
    first = place.fit("net work", Erm(), place.config.training, 0)
    written = place.weights("net work", 0).stat().st_mtime_ns
    again = place.fit("net work", Erm(), place.config.training, 0)
    assert place.weights("net work", 0).stat().st_mtime_ns == written
    assert place.folder("net work", 0).name == "net_work-seed0"
    assert not again.training
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_network_is_trained_on_the_images_it_is_given(tmp_path: Path) -> None:
    place = bench(tmp_path)
    few = spaced(place.train, 60)
    place.fit("few", Erm(), place.config.training, 0, data=few)
    made = json.loads((place.folder("few", 0) / "config.json").read_text(encoding="utf-8"))
    assert made["data_sha256"] == tensor_digest(few.x, few.y)


def test_votes_are_cast_as_the_execution_says(tmp_path: Path) -> None:
    place = bench(tmp_path)
    smoothing, network = Smoothing(Gaussian(0.3), n0=10, n=50), digits_linear().eval()
    for execution in (None, Execution("bfloat16")):
        found = place.certify("votes.sqlite", "net", network, smoothing, 0, execution)
        assert found.settings["execution"] == repr(execution or Execution())
        assert ("bfloat16" in found.certificate.subject) == (execution is not None)


def test_partly_labelled_images_keep_their_labels_and_the_teacher_gives_the_rest(tmp_path: Path) -> None:
    place = bench(tmp_path)
    partly = free_at._partly_labelled
    labelled, pseudo = partly(place, 0.3, 0, pseudo=False), partly(place, 0.3, 0, pseudo=True)
    assert (len(labelled), len(pseudo)) == (30, 100)
    assert torch.equal(pseudo.x, place.train.x)
    kept = torch.isin(place.train.id, labelled.id)
    assert torch.equal(pseudo.y[kept], place.train.y[kept])
    teacher = place.fit("teacher on 0.3", Erm(), free_at._budget(place.config, 7), 0, data=labelled)
    with torch.no_grad():
        assert torch.equal(pseudo.y[~kept], teacher(place.train.x[~kept]).argmax(1))
    assert bool((pseudo.y[~kept] != place.train.y[~kept]).any()), "a teacher on 30 images errs; labels do not leak"
    assert not torch.equal(partly(place, 0.3, 1, pseudo=False).id, labelled.id), "another seed, other labels"


def test_three_bounds_from_one_set_of_votes_are_those_of_their_certifiers() -> None:
    net, data = digits_linear().eval(), digits("test")
    x = data.x[:8]
    tight = Smoothing(Gaussian(0.3), n0=30, n=300, runner_up=0.1)
    votes = tight(net, x, rng=Stream(0))
    assert votes.counts is not None
    found = stability.radii_of(tight, votes.counts.tolist(), votes.prediction.tolist())
    renyi = RenyiSmoothing(0.3, n0=30, n=300, runner_up=0.1)(net, x, rng=Stream(0))
    assert votes.guarantee == PerExample(0.001)
    np.testing.assert_array_equal(found["Cohen"], votes.radius.numpy())
    np.testing.assert_array_equal(found["Renyi"], renyi.radius.numpy())
    assert (found["PixelDP"] <= found["Cohen"]).all()
    assert (found["PixelDP"] > 0).any()


# The recipes' own arithmetic.


@pytest.mark.parametrize("scale", RECIPES["free_at"].scales)
def test_no_cell_of_the_grid_meets_a_batch_more_often_than_it_has_epochs(scale: str) -> None:
    config = RECIPES["free_at"].configuration(scale)
    networks, roles = free_at._networks(config)
    assert set(roles.values()) <= set(networks)
    for method, training in networks.values():
        assert getattr(method, "replays", 1) <= training.epochs
    free = [(m.replays, t.epochs) for m, t in networks.values() if isinstance(m, FreeTraining)]
    assert sorted(free) == sorted((m, e) for e in config.epochs for m in config.replays if m <= e)
    assert networks[roles["free"]][0] == FreeTraining(config.threat, config.main)
    cheap = networks[roles["pgd at the cost of free"]][1].epochs * (config.pgd.steps + 1)
    assert cheap <= config.training.epochs, "no more passes than Free training has"


@pytest.mark.parametrize("scale", RECIPES["loss_landscape"].scales)
def test_budgets_and_cycles_of_the_landscape_fit_its_training(scale: str) -> None:
    config = RECIPES["loss_landscape"].configuration(scale)
    assert config.target == config.sweep[-1] == config.pgd.threat.eps
    replace(config.training, schedule="periodic", cycle_ends=config.cycles)  # refuses what does not fit
    half, none = config.adversarial(config.target / 2), config.adversarial(0.0)
    assert (half.threat.eps, none.threat.eps) == (config.target / 2, 0.0)
    if config.pgd.step_size is not None:
        assert half.step_size == pytest.approx(config.pgd.step_size / 2)
        assert none.step_size is None


@dataclass(frozen=True, slots=True)
class Thresholds:
    """An attack that breaks image i from the budget i / 10 on, and keeps a list of whom it met."""

    met: list[int]

    def __call__(self, model: object, x: torch.Tensor, y: torch.Tensor, *, threat: Threat, rng: Stream) -> object:
        self.met.append(len(x))
        far = y.double() / 10
        return SimpleNamespace(distance=torch.where(far <= threat.eps, far, torch.inf))


def test_growing_budgets_meet_what_the_smaller_ones_left() -> None:
    data = Data(torch.zeros(6, 1, 2, 2), torch.arange(6), torch.arange(6))
    config = SimpleNamespace(attacked=6, budgets={"L2": (0.1, 0.35)}, setting=SETTING)
    place = Bench(config, Path(), Path(), data, data, torch.device("cpu"))
    attack = Thresholds([])
    found = stability.nearest(place, digits_linear(), attack, "L2", 0)  # pyright: ignore[reportArgumentType]
    assert found.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, math.inf, math.inf])
    assert attack.met == [6, 4]


def distances(folder: Path, plain: list[float], defended: list[float]) -> Records:
    arrays = {"DDN": np.array([[plain], [defended]])}
    notes = {"names": ["plain", "deep defense"], "attacks": {"DDN": ""}, "size": [2.0] * len(plain)}
    records = Records(folder)
    records.write("distances", Record(arrays, notes), {})
    return records


def test_gains_are_judged_where_the_attack_found_an_error_on_both_sides(tmp_path: Path) -> None:
    records = distances(tmp_path, [1.0, 1.0, math.inf], [2.0, math.inf, 2.0])
    first, second = deep_defense._both(records, ("deep defense", "DDN"), ("plain", "DDN"))
    assert (first.tolist(), second.tolist()) == ([[1.0]], [[0.5]])
    assert deep_defense._found(deep_defense._rho(records, "plain", "DDN")) == "0.5000 (1 of 3 not found)"
    with pytest.raises(NotRecorded, match="have no image on which both found an error"):
        deep_defense._both(distances(tmp_path, [math.inf], [1.0]), ("deep defense", "DDN"), ("plain", "DDN"))


def test_a_certificate_beyond_a_counterexample_is_seen(tmp_path: Path) -> None:
    records = Records(tmp_path)
    made = {"proved": np.array([[[0.3, 0.1]]]), "Linf": np.array([[[0.3, 0.1]]])}
    records.write("certificates", Record(made, {"names": ["ibp: IBP"], "native": {"ibp: IBP": "Linf"}}), {})
    for nearest, gap in (([0.4, 0.5], 0.1), ([0.2, 0.5], -0.1), ([0.0, 0.5], 0.4)):
        records.write("attacks", Record({"Linf": np.array([[nearest]])}, {"names": ["ibp"]}), {})
        assert smoothing_vs_ibp._least_gap(records).value == pytest.approx(gap)


# Execution.


def recipe(stages: dict[str, object], scales: tuple[str, ...] = ("smoke", "small", "paper")) -> Recipe:
    return Recipe(
        name="tiny",
        paper="Nobody (1900)",
        scales={scale: Small() for scale in scales},
        stages=stages,  # pyright: ignore[reportArgumentType]
        tables={"Numbers": lambda r: (["v"], [[str(v)] for v in r["first"].arrays["v"]])},
        claims=(
            Claim("two", "source", "C", Near(2, 0), lambda r: exactly(float(r["first"].arrays["v"][0])), ("smoke",)),
        ),
        deviations=("none but this",),
    )


def test_a_stage_runs_once_and_a_killed_run_goes_on_with_the_stage_it_was_in(tmp_path: Path) -> None:
    ran: list[str] = []
    alive = False

    def first(_: Bench) -> Record:
        ran.append("first")
        return Record({"v": np.array([2.0])}, {"names": ["a"]})

    def second(_: Bench) -> Record:
        ran.append("second")
        if not alive:
            raise KeyboardInterrupt
        return Record({"v": np.array([3.0])}, {"names": ["a"]})

    made = recipe({"first": first, "second": second})
    folders = {"work": tmp_path / "work", "results": tmp_path / "results"}
    with pytest.raises(KeyboardInterrupt):
        execute(made, "smoke", **folders, command="one")
    assert sorted(p.name for p in folders["results"].iterdir()) == ["first.npz", MANIFEST]
    alive = True
    records = execute(made, "smoke", **folders, command="two")
    execute(made, "smoke", **folders, command="three")
    assert ran == ["first", "second", "second"]
    manifest = json.loads((folders["results"] / MANIFEST).read_text(encoding="utf-8"))
    assert [(name, stage["command"]) for name, stage in manifest["stages"].items()] == [
        ("first", "one"),
        ("second", "two"),
    ]
    assert manifest["seeds"] == [0, 1, 2]
    for stage in manifest["stages"].values():
        assert stage["versions"]["torch"] == torch.__version__
        assert "pid" not in stage["versions"]
    text = report(made, records, "smoke")
    assert (folders["results"] / "report.md").read_text(encoding="utf-8") == text
    for part in ("| 2.0", "reproduced", "[C, recalled, not published]", "* none but this"):
        assert part in text


def test_a_report_without_records_says_not_run(tmp_path: Path) -> None:
    text = report(recipe({}), Records(tmp_path), "smoke")
    assert f"Not run: no record of first in {tmp_path.name}." in text
    assert "| not run" in text


def test_records_of_another_configuration_are_refused(tmp_path: Path) -> None:
    folders = {"work": tmp_path / "work", "results": tmp_path / "results"}
    made = recipe({"first": lambda _: Record({"v": np.array([2.0])}, {"names": ["a"]})})
    execute(made, "smoke", **folders)
    with pytest.raises(
        InputError, match=r"first.npz is a record of something else \(scale: there smoke, asked small\)"
    ):
        execute(made, "small", **folders)
    with pytest.raises(InputError, match="recipe: there tiny, asked other"):
        execute(
            Recipe("other", *(getattr(made, f) for f in ("paper", "scales", "stages", "tables", "claims"))),
            "smoke",
            **folders,
        )


def test_the_commit_is_that_of_this_tree_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = commit()
    assert found is None or len(found.rstrip("+")) >= 7
    monkeypatch.setenv("PATH", "")
    assert commit() is None


def test_the_commit_tells_of_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"ls-files": "execute.py", "rev-parse": "abc1234\n", "status": ""}
    monkeypatch.setattr(execute_module, "check_output", lambda command, **_: said[command[3]])
    assert commit() == "abc1234"
    said["status"] = " M file.py"
    assert commit() == "abc1234+"


def test_an_installed_copy_does_not_take_the_commit_of_the_repository_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def git(command: list[str], **_: object) -> str:
        if command[3] == "ls-files":
            raise CalledProcessError(1, command)
        return "abc1234"

    monkeypatch.setattr(execute_module, "check_output", git)
    assert commit() is None


# The command line.


def test_list_names_every_recipe() -> None:
    shown = CliRunner().invoke(app, ["list"])
    assert shown.exit_code == 0
    for name, declared in RECIPES.items():
        assert name in shown.output
        assert declared.paper in shown.output


def test_run_and_check_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe({"first": lambda _: Record({"v": np.array([2.0])}, {"names": ["a"]})})
    monkeypatch.setattr(command, "RECIPES", {"tiny": made})
    monkeypatch.setattr(sys, "argv", ["paper_repro", "run", "tiny"])
    out = str(tmp_path / "out")
    ran = CliRunner().invoke(app, ["run", "tiny", "--out", out, "--work", str(tmp_path / "work")])
    checked = CliRunner().invoke(app, ["check", "tiny", "--scale", "smoke", "--out", out])
    assert (ran.exit_code, checked.exit_code) == (0, 0)
    assert "1 reproduced, 0 deviates, 0 not run" in checked.stdout
    assert checked.stdout == ran.stdout
    other = CliRunner().invoke(app, ["check", "tiny", "--scale", "small", "--out", out])
    assert isinstance(other.exception, InputError), "numbers of one scale do not judge another's claims"
    assert "scale: there smoke, asked small" in str(other.exception)
    assert "tiny, smoke: first" in ran.stderr
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["stages"]["first"]["command"] == "python -m paper_repro run tiny"


def test_check_without_records_ends_every_claim_as_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    shown = CliRunner().invoke(app, ["check"])
    assert shown.exit_code == 0
    for name, declared in RECIPES.items():
        scale = "small" if "small" in declared.scales else "table"
        counts = f"0 reproduced, 0 deviates, {len(declared.claims)} not run"
        assert f"{name}, {scale}, {tmp_path / name / scale}: {counts}" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none"], "need a recipe among free_at, .*; got 'none'"),
        (["run", "free_at", "--scale", "table"], "need a scale among smoke, small, paper; got 'table'"),
        (["check", "--scale", "huge"], "need a scale among smoke, small, paper; got 'huge'"),
        (["check", "--out", "somewhere"], f"need one recipe with a folder of records; got {len(RECIPES)}"),
    ],
)
def test_misuse_of_the_command_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


# What the reviewers asked.

DEMANDS = (Path(command.__file__).parents[1] / "DEMANDS.md").read_text(encoding="utf-8")
ROWS = [line.split(" | ") for line in DEMANDS.splitlines() if re.match(r"\| [FSDL]\d+ \|", line)]
ASKED = {f"{paper}{k}" for paper, count in (("F", 7), ("S", 9), ("D", 7), ("L", 18)) for k in range(1, count + 1)}


def test_every_demand_has_one_line_with_artefact_command_and_number() -> None:
    names = [row[0].removeprefix("| ") for row in ROWS]
    assert set(names) == ASKED
    assert len(names) == len(ASKED)
    for row in ROWS:
        assert len(row) == 5, row[0]
        assert all(cell.strip(" |") for cell in row), row[0]


def test_the_page_names_tables_and_files_that_exist() -> None:
    root = Path(command.__file__).parents[2]
    titles = {title for declared in RECIPES.values() for title in declared.tables}
    for row in ROWS:
        for quoted in re.findall(r'"([A-Z][^"]+)"', row[2]):
            assert any(title.startswith(quoted) for title in titles), f"{row[0]}: no table {quoted!r}"
        for path in re.findall(r"(?:certify|analysis|paper_repro|figures|tests)/[\w/]+(?:\.\w+)?", " ".join(row)):
            missing_results = path.startswith("paper_repro/results/") and "split_noise" not in path
            assert missing_results or (root / path).exists(), f"{row[0]}: no {path}"


def test_a_recipe_without_committed_records_has_no_number_on_the_page() -> None:
    for row in ROWS:
        found = re.search(r"run (\w+) --scale (\w+)", row[3])
        if found and not (command.RESULTS / found[1] / found[2] / MANIFEST).is_file():
            assert row[4].startswith(("not run yet", "not a number")), row[0]


NUMBER = r"-?\d+(?:\.\d+)?(?:e-\d+)?"
INTERVAL = re.compile(rf"({NUMBER})(?: \+- {NUMBER})?(?: %| points)? \[({NUMBER}), ({NUMBER})\]")
DEVIATION = re.compile(rf"({NUMBER}) \+- ({NUMBER})")


def _tables_of(heading: str, row: str) -> str:
    """The reports of the recipes that a heading and a row name, at the scales that the row names, or else at small."""
    recipes = set(re.findall(r"`(\w+)`", heading)) | set(re.findall(r"\w+", row)) & set(RECIPES)
    scales = {*re.findall(r"--scale (\w+)", row)} or {"small"}
    reports = [command.RESULTS / recipe / scale / "report.md" for recipe in recipes for scale in scales]
    return "".join(path.read_text(encoding="utf-8") for path in reports if path.is_file())


def _is_rounded(quoted: str, recorded: str, unit: float) -> bool:
    """Whether a number is a recorded one, given to at least four digits, in that unit and to the digits quoted."""
    whole, _, fraction = recorded.lstrip("-").partition(".")
    digits = max(len(fraction), 4 - len(whole.lstrip("0")))  # closing zeros may be left out
    rounding = unit * 10.0**-digits + 10.0 ** -len(quoted.partition(".")[2])
    return abs(float(quoted) - unit * float(recorded)) <= rounding / 2 + 1e-9


def _not_recorded(heading: str, row: str) -> list[str]:
    """What a row quotes with an interval or a deviation, and the tables do not hold, as it is or in percent."""
    tables, quoted = _tables_of(heading, row), row.rpartition(" | ")[2]
    missing = []
    for form, parts in ((INTERVAL, r"\[-?\d[^]]*\]"), (DEVIATION, r"\+-")):
        found = list(form.finditer(quoted))
        if len(found) != len(re.findall(parts, quoted)):
            missing.append(f"a number of the form {form.pattern}")
        held = form.findall(tables)
        for match in found:
            numbers = match.groups()
            if not any(
                all(_is_rounded(q, r, unit) for q, r in zip(numbers, recorded, strict=True))
                for recorded in held
                for unit in (1, 100)
            ):
                missing.append(match[0])
    return missing


def test_quoted_intervals_and_deviations_are_those_of_the_records() -> None:
    heading, quoting = "", 0
    for line in DEMANDS.splitlines():
        if line.startswith("## "):
            heading = line
        elif named := re.match(r"\| ([FSDLM]\d+) \|", line):
            missing = _not_recorded(heading, line)
            quoting += " [" in line or "+-" in line
            assert not missing, f"{named[1]}: {missing}"
    assert quoting >= 15


@pytest.mark.parametrize(
    ("quoted", "holds"),
    [
        ("-38.6 points [-44.2, -33.5]", True),
        ("-0.39 [-0.44, -0.33]", True),
        ("-38.6 points [-42.4, -34.8]", False),
        ("42.0 points [39.0, 45.0]", False),
        ("31.9 +- 0.6 %", True),
        ("31.9 +- 0.7 %", False),
        ("in the mean -38.6, over seeds [-44.2, -33.5]", False),
    ],
)
def test_a_number_that_no_record_holds_is_noticed(quoted: str, holds: bool) -> None:
    assert bool(_not_recorded("## (recipe `free_at`)", f"| F0 | `run free_at --scale small` | {quoted} |")) != holds


def test_the_grid_of_step_sizes_says_which_cell_is_the_strongest_of_all_numbers_of_steps(tmp_path: Path) -> None:
    names, table = [WARMED], RECIPES["loss_landscape"].tables["Step sizes and steps of PGD"]
    records = Records(tmp_path)

    def write(stage: str, steps: int, robust: list[list[int]], loss: list[list[float]]) -> None:
        arrays = {"robust": np.array([robust]), "loss": np.array([loss]), "late_gain": np.zeros((1, 2, 2))}
        notes = {"names": names, "cells": [[steps, 0.1], [steps, 1.0]], "n": 10, "eps": 0.3}
        records.write(stage, Record(arrays, notes), {})

    write("effort", 100, [[5, 4], [5, 4]], [[1.0, 2.0], [1.0, 2.0]])
    _, body = table(records)
    assert [row[-1] for row in body] == ["0 of 2", "2 of 2"]
    write("longer", 1000, [[4, 4], [3, 4]], [[1.5, 2.5], [1.0, 9.0]])
    header, body = table(records)
    assert header[0] == "PGD, Linf 0.3"
    assert [row[0] for row in body[2:]] == ["1000 steps of 0.1 eps", "1000 steps of 1 eps"]
    assert [row[-1] for row in body] == ["0 of 2", "0 of 2", "1 of 2", "1 of 2"], "fewest left, then the largest loss"
    assert body[2][1] == "0.3500 +- 0.0707"


def test_gradients_are_read_where_the_warm_up_has_ended(tmp_path: Path) -> None:
    records = Records(tmp_path)
    loss = np.arange(6.0) + np.zeros((1, 2, 6))
    configured = {"configuration": "M(warm_up=Ramp(shape='linear', low=0.0, high=None, epochs=3, per_batch=False))"}
    records.write("gradients", Record({"loss": loss, "gradient_norm": 10 * loss}, {"names": ["0.3"]}), configured)
    header, body = RECIPES["loss_landscape"].tables["Gradients over training"](records)
    assert header[1:] == [f"{what}, epoch {k}" for k in (1, 4, 6) for what in ("loss", "gradient norm")]
    assert [cell.split()[0] for cell in body[0][1:]] == ["0.0000", "0.0000", "3.0000", "30.0000", "5.0000", "50.0000"]
    short = Record({"loss": loss[..., :2], "gradient_norm": loss[..., :2]}, {"names": ["0.3"]})
    records.write("gradients", short, configured)
    header, _ = RECIPES["loss_landscape"].tables["Gradients over training"](records)
    assert header[1::2] == ["loss, epoch 1", "loss, epoch 2"], "the warm-up is longer than training"


def test_a_report_ends_with_every_hyperparameter(tmp_path: Path) -> None:
    recipe = RECIPES["stability"]
    config = recipe.configuration("small")
    text = report(recipe, Records(tmp_path), "small")
    for name in ("attack", "attack_base", "smoothing", "trades"):
        assert f"* {name}: `{getattr(config, name)!r}`" in text


def test_flags_of_the_checklist_bring_their_evidence(tmp_path: Path) -> None:
    def look(name: str, seed: int) -> SimpleNamespace:
        verdict = "flagged" if (name, seed) == ("g", 7) else "passes"
        steps = SimpleNamespace(number=1, name="steps", verdict=verdict, evidence=f"{name} at {seed}; by PGD")
        return SimpleNamespace(
            checks=[steps, SimpleNamespace(number=2, name="noise", verdict="inconclusive", evidence="")]
        )

    records = Records(tmp_path)
    records.write("masking", masking_record(["f", "g"], (5, 7), look, {}), {})  # pyright: ignore[reportArgumentType]
    header, body = masking_table(records)
    assert header == ["check", "f, by seed", "g, by seed", "evidence of flags"]
    assert body == [
        ["1 steps", "passed, passed", "passed, flagged", "g, 2. seed: g at 7"],
        ["2 noise", "open, open", "open, open", ""],
    ]
    assert (flags(records, "f").value, flags(records, "g").value) == (0, 1)
    older = records["masking"]
    notes = {key: value for key, value in older.notes.items() if key != "evidence"}
    records.write("masking", Record(older.arrays, notes), {})
    header, body = masking_table(records)
    assert (header[-1], len(body[0])) == ("g, by seed", 3), "a record from before has none"
