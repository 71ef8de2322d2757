"""Every recipe at its smallest scale: records, tables, verdicts, and a kill between stages that leaves no trace."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from certify.campaign.attack_rows import attack_results
from certify.campaign.store import Store
from paper_repro.recipes import RECIPES, Recipe
from paper_repro.recipes.execute import MANIFEST, REPORT, execute
from paper_repro.recipes.records import Records
from paper_repro.recipes.report import judge

CLOCKED = {"seconds", "memory"}
"""Arrays that time and memory go into: the only ones that two runs may differ in."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Run a recipe by name, once."""

    @cache
    def run(name: str) -> Records:
        folder = tmp_path_factory.mktemp(name)
        return execute(RECIPES[name], "smoke", work=folder / "work", results=folder / "results", command="tests")

    return run


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_and_every_claim_ends(smoke, name: str) -> None:
    records, recipe = smoke(name), RECIPES[name]
    seeds = recipe.configuration("smoke").setting.seeds
    manifest = json.loads((records.folder / MANIFEST).read_text(encoding="utf-8"))
    assert list(manifest["stages"]) == list(recipe.stages)
    assert manifest["seeds"] == list(seeds)
    assert len(seeds) >= 2
    for stage in recipe.stages:
        record = records[stage]
        assert record.notes["recipe"] == name
        for array, values in record.arrays.items():
            if not stage.endswith("cost") and array != "watched":
                assert values.shape[:2] == (len(record.notes["names"]), len(seeds)), (stage, array)
    for title, table in recipe.tables.items():
        header, body = table(records)
        assert body, title
        assert {len(row) for row in body} == {len(header)}, title
        assert f"## {title}" in (records.folder / REPORT).read_text(encoding="utf-8")
    for claim, verdict in zip(recipe.claims, judge(recipe, records, "smoke"), strict=True):
        # What is meant for this scale is mathematics or bookkeeping, and must hold at any.
        expected = "reproduced" if "smoke" in claim.scales else "not run"
        assert verdict.state == expected, f"{claim.text}: {verdict.because}"


@pytest.mark.parametrize("name", RECIPES)
def test_every_claim_of_the_larger_scales_finds_its_records(smoke, name: str) -> None:
    """Judged as if these records were of the claims' own scale: every one ends, and none for want of a record."""
    recipe, records = RECIPES[name], smoke(name)
    for claim in recipe.claims:
        verdict = claim.judge(records, claim.scales[-1])
        assert verdict.state in ("reproduced", "deviates"), f"{claim.text}: {verdict.because}"


def test_a_run_that_was_killed_between_stages_gives_the_same_numbers(smoke, tmp_path: Path) -> None:
    recipe: Recipe = RECIPES["stability"]
    stages = list(recipe.stages)
    told: list[str] = []

    def kill(stage: str) -> None:
        told.append(stage)
        if stage == stages[2]:
            raise KeyboardInterrupt

    def go(tell) -> Records:
        return execute(recipe, "smoke", work=tmp_path / "work", results=tmp_path / "results", tell=tell)

    with pytest.raises(KeyboardInterrupt):
        go(kill)
    resumed = go(told.append)
    assert told == [*stages[:3], *stages[2:]]
    for stage in stages:
        whole, parts = smoke("stability")[stage], resumed[stage]
        assert whole.notes == parts.notes
        for array in set(whole.arrays) - CLOCKED:
            np.testing.assert_array_equal(whole.arrays[array], parts.arrays[array], err_msg=f"{stage}: {array}")


def test_the_store_of_the_comparison_holds_every_certifier_and_attack(smoke) -> None:
    folder = smoke("smoothing_vs_ibp").folder
    with Store(folder / "seed-0.sqlite") as store:
        subjects = [r.certificate.subject for r in store.results()]
        attacked = attack_results(store)
    assert subjects.count("f") == 5
    assert len(subjects) == 6
    assert sorted(r.settings["threat"]["norm"] for r in attacked) == ["L2", "L2", "Linf", "Linf"]
