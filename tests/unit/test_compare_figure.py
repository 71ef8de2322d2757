"""The comparison: what is counted, how it is marked, and what is refused."""

from pathlib import Path

import pytest
import torch

from analysis.attacks import PGD
from analysis.campaign import attack_campaign
from certify import CROWN, IBP, Certificate, Contradiction, Deterministic, Gaussian, InputError, Smoothing, Threat
from certify.campaign.runner import run, verify
from certify.campaign.store import Store
from certify.verified_radius import Bisection
from figures.compare import RADII, accuracy, compare, short
from paper_repro.data import digits
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


def rows(out: Path) -> list[list[str]]:
    text = (out / "compare.csv").read_text(encoding="utf-8").splitlines()
    return [line.split(",") for line in text]


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
    from figures import compare as module

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
    from certify.campaign.attack_rows import attack_results
    from figures import compare as module

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


def test_short_names() -> None:
    threat = Threat("Linf", 0.1)
    assert short(repr(IBP(threat))) == "IBP at 0.1"
    assert short(repr(Bisection(IBP(threat), 5))) == "IBP"
    assert short(repr(CROWN(threat, intermediate="ibp"))) == "CROWN-IBP at 0.1"
    assert short(repr(CROWN(threat, slopes="fast_lin"))) == "CROWN (Fast-Lin) at 0.1"
    assert short(repr(Bisection(CROWN(threat, slopes="optimized"), 5))) == "CROWN (optimised slopes)"
    assert short(repr(Smoothing(Gaussian(0.5)))) == "Smoothing"
    assert short(repr(PGD(20))) == "PGD", "steps are no eps"
