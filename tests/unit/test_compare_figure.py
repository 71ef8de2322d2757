"""The comparison: what is counted, how it is marked, and what is refused."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from analysis.attacks import PGD
from analysis.campaign import attack_campaign
from certify import CROWN, IBP, Certificate, Contradiction, Deterministic, Gaussian, InputError, Smoothing, Threat
from certify.campaign.attack_rows import attack_results
from certify.campaign.runner import run, verify
from certify.campaign.store import Store
from certify.verified_radius import Bisection
from figures import compare as module
from figures.compare import NORMS, RADII, accuracy, check_brackets, compare, short
from paper_repro.data import Data, digits
from tests.networks import digits_linear

NAMES = ("tests.networks:digits_linear", "paper_repro.data:digits test")


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    """A linear network, whose radii are exact: verified, smoothed and attacked."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = digits_linear().eval()
    data = digits("test")
    path = tmp_path / "plain.sqlite"
    common = {"names": NAMES, "indices": "0:40"}
    verify(path, Bisection(IBP(Threat("Linf", 0.5, box=None)), 12), model, data, **common)  # type: ignore[arg-type]
    verify(path, IBP(Threat("Linf", 0.01)), model, data, add=True, **common)  # type: ignore[arg-type]
    run(path, Smoothing(Gaussian(0.5), n=1000), model, data, add=True, **common)  # type: ignore[arg-type]
    attack_campaign(path, [PGD(20)], model, data, threat=Threat("Linf", 0.1), **common)  # type: ignore[arg-type]
    return [path]


def csv_of(out: Path) -> list[list[str]]:
    with (out / "compare.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_table_text_and_pictures(stores: list[Path], tmp_path: Path) -> None:
    files = compare(stores, tmp_path / "out", dimension=64)
    assert {f.suffix for f in files} == {".png", ".pdf", ".md", ".csv", ".tex"}
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    for word in ("plain (digits_linear)", "deterministic", "1 - 0.001 per input", "found", "IBP at 0.01", "seed 0"):
        assert word in text
    assert "At Linf 0.01:" in text
    assert "Why the norms decide it" in text
    assert "r / 8" in text


def test_what_a_cell_counts(stores: list[Path], tmp_path: Path) -> None:
    with Store(stores[0]) as store:
        largest, fixed, smoothed = store.results()
    line = module._of_certificates(largest, "plain", 64)
    radius = largest.certificate.radius.numpy()
    right = largest.certificate.prediction.numpy() == largest.label
    for r in RADII["Linf"]:
        assert accuracy(line, "Linf", r) == int((right & (radius >= r)).sum())
        assert accuracy(line, "L2", r) == int((right & (radius >= r)).sum()), "a Linf ball holds the L2 ball"
    native = module._of_certificates(smoothed, "plain", 64)
    assert accuracy(native, "Linf", 0.01) == int(
        ((smoothed.certificate.radius.numpy() / 8 >= 0.01) & (smoothed.scores() > 0)).sum()
    )
    assert accuracy(module._of_certificates(fixed, "plain", 64), "Linf", 0.03) == 0


def test_an_attack_says_nothing_beyond_its_budget_or_norm(stores: list[Path]) -> None:
    with Store(stores[0]) as store:
        (found,) = attack_results(store)
    line = module._of_attacks(found, "plain")
    assert accuracy(line, "L2", 0.1) is None
    assert accuracy(line, "Linf", 0.3) is None
    assert accuracy(line, "Linf", 0.1) == int(found.rows.robust.sum())


def test_a_contradiction_is_not_drawn(stores: list[Path], tmp_path: Path) -> None:
    with Store(stores[0]) as store:
        first = store.results()[0]
        m = len(first.label)
        false = Certificate(
            prediction=torch.from_numpy(first.label),
            radius=torch.full((m,), 0.4, dtype=torch.float64),
            norm="Linf",
            subject="f",
            guarantee=Deterministic(),
            method="Claim()",
            samples=torch.zeros(m, dtype=torch.int64),
        )
        claimed = store.open_run({**first.settings, "method": "Claim()"}, {}, add=True)
        claimed.append(false, first.example.tolist(), first.label.tolist(), seconds=0.0)
    with pytest.raises(Contradiction, match="is certified to"):
        compare(stores, tmp_path / "out", dimension=64)


def test_what_is_refused(stores: list[Path], tmp_path: Path) -> None:
    model, data = digits_linear().eval(), digits("test")
    other = tmp_path / "other.sqlite"
    verify(other, IBP(Threat("Linf", 0.01)), model, data, names=NAMES, indices="50:60")
    with pytest.raises(InputError, match="need examples that all runs share"):
        compare([*stores, other], tmp_path / "out", dimension=64)
    only = tmp_path / "attacks.sqlite"
    attack_campaign(only, [PGD(5)], model, data, threat=Threat("Linf", 0.1), names=NAMES, indices="0:5")
    with pytest.raises(InputError, match="need a run of certificates"):
        compare([only], tmp_path / "out", dimension=64)


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return digits_linear().eval()


def renumbered(split: str) -> Data:
    """Eight images of a split, whose ids are those of eight others in the other split."""
    data = digits(split)
    return Data(data.x[:8], data.y[:8], torch.arange(8))


def test_ids_of_two_data_sets_are_not_joined(tmp_path: Path) -> None:
    path, model = tmp_path / "s.sqlite", network(0)
    # The largest radii of a linear network: an attack on another image of the same id is nearer for some.
    verify(path, Bisection(IBP(Threat("Linf", 0.5)), 12), model, renumbered("test"), names=("m", "d test"))
    attack_campaign(path, [PGD(20)], model, renumbered("train"), threat=Threat("Linf", 0.5), names=("m", "d train"))
    with Store(path) as store:
        certificates, attacks = store.results(), attack_results(store)
    test, train = (run.settings["data_sha256"][:8] for run in (certificates[0], attacks[0]))
    message = rf"^need one data_sha256 in all runs, .*; got {test} \(d test\), {train} \(d train\)$"
    with pytest.raises(InputError, match=message):
        compare([path], tmp_path / "out", dimension=64)
    check_brackets(certificates, attacks, 64)
    (made,), (found,) = certificates, attacks
    assert (made.scores() >= found.rows.distance).any(), "joined, they would contradict each other"


def test_an_attack_outside_the_box_bounds_nothing_inside(tmp_path: Path) -> None:
    path, model, data = tmp_path / "s.sqlite", network(0), digits("test")
    common: dict[str, Any] = {"names": NAMES, "indices": ":5", "add": True}
    verify(path, IBP(Threat("Linf", 0.01, box=None)), model, data, **common)
    attack_campaign(path, [PGD(5)], model, data, threat=Threat("L2", 0.5, box=None), **common)
    compare([path], tmp_path / "out", dimension=64)
    verify(path, IBP(Threat("Linf", 0.01)), model, data, **common)
    message = r"^need attacks in the box that IBP at 0\.01 is about; those at L2 0\.5 had none: keep the two apart$"
    with pytest.raises(InputError, match=message):
        compare([path], tmp_path / "out", dimension=64)


def drawn(stores: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    figure = Figure()
    with monkeypatch.context() as patch:
        patch.setattr(module, "write", lambda name, out, draw, table: [draw(figure)])
        compare(stores, out, dimension=64)
    return figure


def panels(figure: Figure) -> dict[str, int]:
    """By title, how many marks of attacks."""
    return {axes.get_title(): sum(line.get_marker() == "v" for line in axes.lines) for axes in figure.axes}


def test_two_networks_of_one_callable_have_panels_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = tmp_path / "s.sqlite", digits("test")
    common: dict[str, Any] = {"names": NAMES, "indices": ":5", "add": True}
    verify(path, IBP(Threat("Linf", 0.01)), network(0), data, **common)
    verify(path, IBP(Threat("Linf", 0.01)), network(1), data, **common)
    attack_campaign(path, [PGD(5)], network(1), data, threat=Threat("Linf", 0.1), **common)
    with Store(path) as store:
        first, second = (r.settings["model_sha256"][:8] for r in store.results())
    found = sum(r <= 0.1 for r in RADII["Linf"])
    names = [f"s (digits_linear, {digest})" for digest in (first, second)]
    marks = {f"{name}, {norm}": 0 for name in names for norm in NORMS} | {f"{names[1]}, Linf": found}
    assert panels(drawn([path], tmp_path, monkeypatch)) == marks
    compare([path], tmp_path / "out", dimension=64)
    assert [row[0] for row in csv_of(tmp_path / "out")[1:]] == [names[0], names[1], names[1]]


def test_one_network_in_two_stores_has_one_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, found, data = tmp_path / "made.sqlite", tmp_path / "found.sqlite", digits("test")
    verify(made, IBP(Threat("Linf", 0.01)), network(0), data, names=NAMES, indices=":5")
    attack_campaign(found, [PGD(5)], network(0), data, threat=Threat("Linf", 0.01), names=("m", "d"), indices=":5")
    marks = panels(drawn([made, found], tmp_path, monkeypatch))
    assert marks == {"made, found (digits_linear, m), Linf": 1, "made, found (digits_linear, m), L2": 0}


def test_short_names() -> None:
    threat = Threat("Linf", 0.1)
    assert short(repr(IBP(threat))) == "IBP at 0.1"
    assert short(repr(Bisection(IBP(threat), 5))) == "IBP"
    assert short(repr(CROWN(threat, intermediate="ibp"))) == "CROWN-IBP at 0.1"
    assert short(repr(CROWN(threat, slopes="fast_lin"))) == "CROWN (Fast-Lin) at 0.1"
    assert short(repr(Bisection(CROWN(threat, slopes="optimized"), 5))) == "CROWN (optimised slopes)"
    assert short(repr(Smoothing(Gaussian(0.5)))) == "Smoothing"
    assert short(repr(PGD(20))) == "PGD", "steps are no eps"
