"""The report: one page that needs nothing else, says what the rows say, and says what is not there."""

import base64
import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from typer.testing import CliRunner

import figures.__main__
import figures.report_run
from analysis.attacks import PGD
from analysis.campaign import attack_campaign
from analysis.masking_checks import QUESTIONS
from certify import IBP, Certificate, Contradiction, Deterministic, Gaussian, InputError, Smoothing, Threat
from certify.campaign.attack_rows import attack_results
from certify.campaign.runner import run, verify
from certify.campaign.store import Store
from certify.campaign.tables import row_of
from certify.verified_radius import Bisection
from figures import report_sections
from figures.compare import RADII
from figures.marks import MARKS
from figures.report import PAGE, record_of, report
from figures.report_page import Chapter, Details, Missing, Picture, Section, Table, render_page
from figures.report_panels import panel_sections
from figures.report_pictures import draw_brackets, draw_curvature, draw_curves, draw_lipschitz, picture, plain
from figures.report_rows import F, Known, identity, known, networks
from figures.report_run import STORE, Plan, measure
from figures.report_sections import share
from paper_repro.data import Data, digits
from paper_repro.models import linear, save_checkpoint
from tests.networks import digits_mlp

NAMES = ("tests.networks:digits_mlp", "paper_repro.data:digits test")
M = 30
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A strict reader: every tag that is opened is closed, in order; what is fetched and what is shown is kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.alts: list[str | None] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        assert len(found) == len(attrs), "an attribute twice"
        self.sources += [str(found[k]) for k in ("src", "href", "srcset", "action", "data") if k in found]
        self.ids += [str(found["id"])] if "id" in found else []
        assert not any(k.startswith("on") for k in found)
        if tag == "img":
            self.alts.append(found.get("alt"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def trained() -> nn.Module:
    """A network that learned something, in a second."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data = digits_mlp(), digits("train")
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        for _ in range(60):
            loss = nn.functional.cross_entropy(model(data.x), data.y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def full(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of certificates about f and g, and of attacks on f."""
    path, data = tmp_path_factory.mktemp("full") / "mine.sqlite", digits("test")
    common: dict[str, Any] = {"names": NAMES, "indices": f":{M}", "add": True}
    verify(path, Bisection(IBP(Threat("Linf", 0.5)), 10), model, data, **common)
    verify(path, IBP(Threat("Linf", 0.01)), model, data, **common)
    run(path, Smoothing(Gaussian(0.25), n=500), model, data, seed=7, **common)
    attack_campaign(path, [PGD(10)], model, data, threat=Threat("Linf", 0.01), seed=3, **common)
    attack_campaign(path, [PGD(10)], model, data, threat=Threat("Linf", 0.15), seed=4, **common)
    return path


@pytest.fixture(scope="module")
def full_page(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(full, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(full_page: Path) -> Page:
    return Page(full_page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def measured(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report made from a network, by the command."""
    folder = tmp_path_factory.mktemp("measured")
    weights = save_checkpoint(model, folder / "weights", {})
    result = CliRunner().invoke(figures.__main__.app, arguments(folder, weights), catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.strip() == str(folder / "out" / PAGE)
    return folder


def arguments(folder: Path, weights: Path) -> list[str]:
    words = ["report", "--model", NAMES[0], "--weights", str(weights), "--data", "paper_repro.data:digits"]
    words += ["--indices", ":12", "--n", "200", "--images", "6", "--eps", "8/255", "--seed", "5"]
    return [*words, "--out", str(folder / "out")]


@pytest.fixture(scope="module", autouse=True)
def little_effort() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures.report_run, "_STEPS", 20)
        yield


def claim(path: Path, radius: float) -> None:
    """Add a run that claims every example of the first run to be right, as far as this."""
    with Store(path) as store:
        first = store.results()[0]
        label, m = torch.from_numpy(first.label), len(first.label)
        false = Certificate(
            prediction=label,
            radius=torch.full((m,), radius, dtype=torch.float64),
            norm="Linf",
            subject=F,
            guarantee=Deterministic(),
            method="Claim()",
            samples=torch.zeros(m, dtype=torch.int64),
        )
        claimed = store.open_run({**first.settings, "method": "Claim()"}, {}, add=True)
        claimed.append(false, first.example.tolist(), first.label.tolist(), seconds=0.0)


def page_of(store: Path, out: Path) -> Page:
    return Page(report(store, out).read_text(encoding="utf-8"))


# --- the page -----------------------------------------------------------------------------------------------------


def check_page(text: str) -> None:
    """Valid, and in need of nothing that is not in it."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.sources
    assert all(s.startswith(("#", "data:image/svg+xml;base64,")) for s in page.sources)
    assert {s[1:] for s in page.sources if s.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "@media print" in text
    assert all(page.alts)
    assert page.tags.count("table") == page.tags.count("caption")
    for source in page.sources:
        if source.startswith("data:"):
            drawn = base64.b64decode(source.partition(",")[2]).decode()
            assert "<svg" in drawn
            assert "<script" not in drawn
            assert 'href="http' not in drawn
            assert "<dc:date>" not in drawn


def test_the_page_needs_nothing_else_and_is_valid(full_page: Path) -> None:
    check_page(full_page.read_text(encoding="utf-8"))


def test_the_same_store_gives_the_same_bytes(full: Path, full_page: Path, tmp_path: Path) -> None:
    assert report(full, tmp_path).read_bytes() == full_page.read_bytes()


def test_a_measured_page_is_as_good_and_made_again_from_its_store(measured: Path, tmp_path: Path) -> None:
    made = measured / "out" / PAGE
    check_page(made.read_text(encoding="utf-8"))
    assert report(measured / "out" / STORE, tmp_path).read_bytes() == made.read_bytes()


def test_text_is_escaped(model: nn.Module, tmp_path: Path) -> None:
    evil = '<script>alert("1")</script> & $x$ \'"><img src=x onerror=y>'
    path = tmp_path / "s.sqlite"
    verify(path, IBP(Threat("Linf", 0.01)), model, digits("test"), names=(evil, evil), indices=":5")
    text = report(path, tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert evil in " ".join(page.words)


def test_every_kind_of_block_is_escaped() -> None:
    bad = "<b>&\"'"
    section = Section(
        bad,
        (bad,),
        (Picture(bad, bad, bad),),
        (Table(bad, (bad,), ((bad,),)),),
        (Missing(bad, bad),),
        (Details(bad, ((bad, bad),)),),
    )
    text = render_page(bad, (Chapter(bad, ((bad, bad),), (section,)),), level=bad, command=bad)
    assert "<b>" not in text
    assert Page(text).words.count(bad) >= 14


# --- what it says -------------------------------------------------------------------------------------------------


def test_brackets_are_the_best_of_all_runs(full: Path, model: nn.Module) -> None:
    with Store(full) as store:
        (network,) = networks(store)
        largest, fixed, smoothed = store.results()
        near, far = attack_results(store)
    joined = known(network, F, "Linf")
    # By hand, row by row.
    for i in range(M):
        radii = [
            float(r.certificate.radius[i]) if int(r.certificate.prediction[i]) == r.label[i] else 0.0
            for r in (largest, fixed)
        ]
        assert joined.lower[i] == max(radii)
        assert joined.upper[i] == min(near.rows.distance[i], far.rows.distance[i])
        assert joined.lower[i] < joined.upper[i] or joined.upper[i] == 0
    assert joined.attacked.all()
    assert list(joined.budget) == [0.15] * M
    assert joined.extents == [(0.15, M)]
    assert 0 < np.isinf(joined.upper).sum() < M
    assert any(by == "PGD (attack run 2)" for by in joined.found_by)
    other = known(network, smoothed.certificate.subject, "L2")
    assert not other.attacked.any()
    assert not other.budget.any()
    assert (other.reach, other.extents) == (0.0, [])
    assert np.isinf(other.upper).all()
    np.testing.assert_array_equal(other.lower, np.maximum(smoothed.scores(), 0.0))


def test_subjects_are_never_merged(full: Path, page: Page) -> None:
    with Store(full) as store:
        (network,) = networks(store)
    g = "g(Gaussian(sigma=0.25))"
    assert network.subjects() == [F, g]
    assert network.norms(F) == ["Linf"]
    assert network.norms(g) == ["L2"]
    assert [p.name for p in network.proved_of(F)] == ["IBP (run 1)", "IBP at 0.01 (run 2)"]
    assert [p.name for p in network.proved_of(g)] == ["Smoothing (run 3)"]
    assert network.found_of(g) == []
    assert "The network f in Linf" in page.text
    assert f"The smoothed classifier {g} in L2" in page.text
    assert f"No upper bound on r* of {g}: attacks on f say nothing about it" in page.text


def test_numbers_come_with_n_interval_and_seed(full: Path, page: Page) -> None:
    with Store(full) as store:
        near, far = attack_results(store)
    with Store(full) as store:
        (network,) = networks(store)
    lower = known(network, F, "Linf").lower
    assert (lower >= 0.01).sum() > 0
    for found, eps, seed in ((near, 0.01, 3), (far, 0.15, 4)):
        proved = share(int((lower >= eps).sum()), M, 0.05)
        robust = share(int(found.rows.robust.sum()), M, 0.05)
        fact = f"f: robust accuracy at Linf {eps:g} at least {proved} proved, at most {robust} found (seed {seed})"
        assert fact in page.text
    assert f"f: clean accuracy {share(int(near.rows.correct.sum()), M, 0.05)}" in page.text
    assert page.text.count("f: clean accuracy") == 1
    for word in ("seed 7", "no randomness", f"n = {M}", "alpha = 0.001", "95 %", "attack run 1: seed 3"):
        assert word in page.text


def test_a_headline_is_about_a_radius_at_which_there_is_something_to_say(model: nn.Module, tmp_path: Path) -> None:
    """A search for the nearest error breaks every image within its budget, where nothing is proved either."""
    path, data = tmp_path / "s.sqlite", digits("test")
    common: dict[str, Any] = {"names": NAMES, "indices": ":20", "add": True}
    attack_campaign(path, [PGD(10)], model, data, threat=Threat("Linf", 0.9), **common)
    with Store(path) as store:
        (found,) = attack_results(store)
    assert not found.rows.robust.any()
    verify(path, Bisection(IBP(Threat("Linf", 0.5)), 10), model, data, **common)
    with Store(path) as store:
        (network,) = networks(store)
    lower = known(network, F, "Linf").lower
    radius = max(r for r in RADII["Linf"] if (lower >= r).any())
    held, left = (lower >= radius).sum(), (found.rows.distance > radius).sum()
    facts = dict(report_sections._facts(network, F, "Linf", known(network, F, "Linf"), 0.05))
    both = f"at least {share(int(held), 20, 0.05)} proved, at most {share(int(left), 20, 0.05)} found"
    assert facts[f"f: robust accuracy at Linf {radius:g}"].startswith(both)
    assert "f: robust accuracy at Linf 0.9" not in facts
    assert report_sections._telling(network.found[0], np.full(20, 0.95)) == [0.9], "proved at the budget: said there"
    text = page_of(path, tmp_path).text
    assert "all n = 20 examples" in text
    assert "scroll for" not in text, "paper does not scroll"


def test_captions_without_a_certificate_describe_none(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    attack_campaign(path, [PGD(5)], model, digits("test"), threat=Threat("Linf", 0.1), names=NAMES, indices=":5")
    text = page_of(path, tmp_path).text
    assert "Certified correct within r" not in text
    assert "certified correct" not in text
    assert "Black: no error found within r" in text
    assert "Share of images not broken within r by any attack" in text


def test_the_table_counts_what_was_not_broken(full: Path, page: Page) -> None:
    at = page.cells.index("not broken")
    with Store(full) as store:
        (network,) = networks(store)
    upper = known(network, F, "Linf").upper
    # After "quantity" come two empty cells, which hold no text, and the shares.
    assert page.cells[at + 1] == f"{np.mean(upper > 0):.3f}"
    assert f"{np.mean(np.isinf(upper)):.3f}" in page.cells[at + 1 : page.cells.index("each <=, 95 %")]


def test_brackets_list_every_example(full: Path, page: Page) -> None:
    with Store(full) as store:
        (network,) = networks(store)
    joined = known(network, F, "Linf")
    at = page.cells.index("unknown")
    first = int(np.isinf(joined.upper).argmax())
    assert page.cells[at - 3] == str(joined.example[first])
    assert float(page.cells[at - 1]) <= joined.lower[first] < float(page.cells[at - 1]) + 2e-5
    assert page.cells.count("unknown") >= np.isinf(joined.upper).sum() + M


def test_rows_are_rounded_outward() -> None:
    bounds = a_known(lower=np.array([0.123456789, 0.0, 0.2, 0.0]), upper=np.array([0.123456789, 0.0, np.inf, 0.25]))
    table = report_sections._rows(bounds, "Linf")
    assert [row[2:4] for row in table.body] == [
        ("0.12345", "0.12346"),
        ("0.00000", "0.00000"),
        ("0.20000", "unknown"),
        ("0.00000", "0.25000"),
    ]


@pytest.fixture(scope="module")
def uneven(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images, of which the first six were attacked less far, two of them twice, and two not at all."""
    path, data = tmp_path_factory.mktemp("uneven") / "s.sqlite", digits("test")
    common: dict[str, Any] = {"names": NAMES, "add": True}
    verify(path, IBP(Threat("Linf", 0.001)), model, data, indices=":12", **common)
    attack_campaign(path, [PGD(5)], model, data, threat=Threat("Linf", 0.0005), indices=":6", **common)
    attack_campaign(path, [PGD(5)], model, data, threat=Threat("Linf", 0.002), indices="4:10", **common)
    return path


def test_every_example_keeps_how_far_it_was_attacked(uneven: Path) -> None:
    with Store(uneven) as store:
        (network,) = networks(store)
    joined = known(network, F, "Linf")
    assert joined.budget.tolist() == [0.0005] * 4 + [0.002] * 6 + [0.0] * 2
    assert joined.attacked.tolist() == [True] * 10 + [False] * 2
    assert joined.extents == [(0.0005, 4), (0.002, 6)]
    assert joined.reach == 0.002


def test_a_page_says_how_far_each_example_was_attacked(uneven: Path, tmp_path: Path) -> None:
    with Store(uneven) as store:
        (network,) = networks(store)
    joined = known(network, F, "Linf")
    words = [row[4] for row in report_sections._rows(joined, "Linf").body]
    assert words == ["0.0005"] * 4 + ["0.002"] * 6 + ["not attacked"] * 2
    page = page_of(uneven, tmp_path)
    note = "Not all images were attacked as far: 4 up to 0.0005, 6 up to 0.002."
    assert page.text.count(note) == 2, "below the curve and above the table"
    table = report_sections._accuracy(network.proved_of(F), network.found_of(F), joined, 0.05)
    header, (far,) = table.header, [row for row in table.body if row[4] == "attacked up to r"]
    assert (far[header.index("r=0")], far[header.index("r=0.0005")]) == ("10/10", "10/10")
    assert far[header.index("r=0.002")] == "6/10"


def test_a_page_of_even_attacks_needs_no_note(page: Page) -> None:
    assert "attacked as far" not in page.text
    assert "attacked up to r" not in page.cells


def test_two_networks_are_two_chapters(full: Path, model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "two.sqlite"
    path.write_bytes(full.read_bytes())
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = digits_mlp().eval()
    verify(path, IBP(Threat("Linf", 0.01)), other, digits("test"), names=("a:b", "c:d"), indices="5:9", add=True)
    page = page_of(path, tmp_path)
    assert page.tags.count("article") == 3, "and one note on what is measured of neither"
    both = "Of tests.networks:digits_mlp on paper_repro.data:digits test, a:b on c:d."
    assert page.text.count(f"Gradient masking, Curvature, Local Lipschitz constants {both}") == 1
    assert page.text.count("A store's rows do not say: this is measured on the network itself.") == 1
    assert page.text.startswith("Robustness of tests.networks:digits_mlp, a:b ")
    assert "a:b on c:d" in page.text
    with Store(path) as store:
        first, second = networks(store)
    assert (len(first.proved), len(first.found), len(second.proved), len(second.found)) == (3, 2, 1, 0)
    assert "--model a:b --weights WEIGHTS --data c:d --split test --indices START:STOP:STEP" in page.text


# --- what is missing ----------------------------------------------------------------------------------------------


def test_a_store_says_what_it_lacks_and_how_to_add_it(model: nn.Module, tmp_path: Path) -> None:
    data, common = digits("test"), {"names": NAMES, "indices": "0:20:2"}
    subject = f"--model {NAMES[0]} --weights WEIGHTS --data paper_repro.data:digits --split test"
    subject += " --indices START:STOP:STEP"
    run_it = f"python -m certify run {subject} --scale 0.25 --store s.sqlite --add"
    attack_it = f"python -m analysis attack {subject} --norm Linf --eps 0.1 --store s.sqlite --add"
    verify_it = f"python -m certify verify {subject} --norm Linf --eps 0.5 --largest --method crown"
    page_it = f"python -m figures report {subject} --out DIR"
    only = tmp_path / "verified" / "s.sqlite"
    verify(only, IBP(Threat("Linf", 0.01)), model, data, **common)  # type: ignore[arg-type]
    text = page_of(only, tmp_path).text
    assert run_it in text
    assert attack_it in text
    assert verify_it not in text
    assert text.count(page_it) == 1
    only = tmp_path / "smoothed" / "s.sqlite"
    run(only, Smoothing(Gaussian(0.25), n=100), model, data, **common)  # type: ignore[arg-type]
    text = page_of(only, tmp_path).text
    assert attack_it in text
    assert verify_it in text
    assert run_it not in text
    only = tmp_path / "attacked" / "s.sqlite"
    attack_campaign(only, [PGD(5)], model, data, threat=Threat("Linf", 0.1), **common)  # type: ignore[arg-type]
    text = page_of(only, tmp_path).text.replace("0:20:2", "START:STOP:STEP")
    assert "--indices 0:20:2" in page_of(only, tmp_path).text
    assert "No certificate for f in Linf is in the store, so every lower bound is 0." in text
    assert verify_it in text
    assert run_it in text
    assert attack_it not in text


def test_what_is_refused(full: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^need an existing store; no file at"):
        report(tmp_path / "none.sqlite", tmp_path)
    with Store(tmp_path / "empty.sqlite", create=True):
        pass
    with pytest.raises(InputError, match=r"holds neither certificates nor attacks yet$"):
        report(tmp_path / "empty.sqlite", tmp_path)
    copy = tmp_path / "s.sqlite"
    copy.write_bytes(full.read_bytes())
    for text in ("{", "[]", "{}", '{"format": 0}'):
        record_of(copy).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"s\.panels\.json is not a record of a report"):
            report(copy, tmp_path)


def test_a_contradiction_is_not_drawn(full: Path, tmp_path: Path) -> None:
    copy = tmp_path / "s.sqlite"
    copy.write_bytes(full.read_bytes())
    claim(copy, 0.4)
    with pytest.raises(Contradiction, match="is certified to"):
        report(copy, tmp_path)
    assert not (tmp_path / PAGE).exists()


def test_an_attack_outside_the_box_bounds_nothing_inside(model: nn.Module, tmp_path: Path) -> None:
    path, data = tmp_path / "s.sqlite", digits("test")
    common: dict[str, Any] = {"names": NAMES, "indices": ":5", "add": True}
    verify(path, IBP(Threat("Linf", 0.01, box=None)), model, data, **common)
    attack_campaign(path, [PGD(5)], model, data, threat=Threat("Linf", 0.1, box=None), **common)
    with Store(path) as store:
        assert known(networks(store)[0], F, "Linf").attacked.all()
    verify(path, IBP(Threat("Linf", 0.01)), model, data, **common)
    message = r"^need attacks in the box that IBP at 0\.01 \(run 2\) is about; attack run 1 had none"
    with pytest.raises(InputError, match=message):
        report(path, tmp_path)


# --- from a network -----------------------------------------------------------------------------------------------


def test_a_network_gets_every_section(measured: Path) -> None:
    page = Page((measured / "out" / PAGE).read_text(encoding="utf-8"))
    for word in ("Gradient masking", "Curvature", "Local Lipschitz constants", "Cost", "Provenance"):
        assert word in page.text
    for question, _, _ in QUESTIONS.values():
        assert question in page.text
    record = json.loads(record_of(measured / "out" / STORE).read_text(encoding="utf-8"))
    checks = record["masking"]["checks"]
    assert len(checks) == len(QUESTIONS)
    for check in checks:
        assert check["evidence"] in page.text
    for verdict in ("passes", "flagged", "inconclusive"):
        assert page.cells.count(verdict) == sum(c["verdict"] == verdict for c in checks)
    trace = record["curvature"]["trace"]
    assert f"Trace {trace['value']:.6g}" in page.text
    low, high = (float(v) for v in page.text.partition(" and [")[2].partition("] with probability")[0].split(", "))
    assert low <= trace["interval"][0] < trace["interval"][1] <= high
    assert high - low < (trace["interval"][1] - trace["interval"][0]) * 1.001
    for value in record["curvature"]["spectrum"]["eigenvalues"]:
        assert f"{value:.6g}" in page.cells
    lipschitz = record["lipschitz"]
    assert [ball["eps"] for ball in lipschitz["balls"]] == [8 / 2550, 8 / 255]
    for ball in lipschitz["balls"]:
        assert len(ball["sampled"]) == len(ball["certified"]) == 6
        assert all(a <= b for a, b in zip(ball["sampled"], ball["certified"], strict=True))
        assert max(ball["certified"]) <= lipschitz["product"] * (1 + 1e-12)
    assert "Everywhere, not only there" in page.text
    for word in ("n = 6", "seed 5", "commit", "--eps 8/255", "file with SHA-256", record["about"]["model_sha256"]):
        assert word in page.text
    assert "Not in this store" not in page.text


def test_a_finished_report_computes_nothing_again(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    for name in ("masking_report", "Hessian", "sampled_lipschitz"):
        monkeypatch.setattr(figures.report_run, name, refuse)
    monkeypatch.setattr(figures.report_run.Smoothing, "__call__", refuse)
    before = (measured / "out" / PAGE).read_bytes()
    command = arguments(measured, measured / "weights" / "weights.safetensors")
    assert CliRunner().invoke(figures.__main__.app, command, catch_exceptions=False).exit_code == 0
    assert (measured / "out" / PAGE).read_bytes() == before
    # One finished panel is kept while another is measured anew.
    path = record_of(measured / "out" / STORE)
    held = path.read_text(encoding="utf-8")
    try:
        path.write_text(json.dumps({k: v for k, v in json.loads(held).items() if k != "curvature"}), encoding="utf-8")
        with pytest.raises(AssertionError, match="computed again"):
            CliRunner().invoke(figures.__main__.app, command, catch_exceptions=False)
    finally:
        path.write_text(held, encoding="utf-8")


def test_panels_are_measured_anew_for_another_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    for name in ("_masking", "_curvature", "_lipschitz"):
        monkeypatch.setattr(figures.report_run, name, lambda *_, name=name: calls.append(name) or {"reason": name})
    data, model, path = digits("test"), digits_mlp().eval(), tmp_path / "p.json"
    about = {"model_sha256": "m", "data_sha256": "d"}

    def panels(plan: Plan, ids: list[int], about: dict[str, str]) -> int:
        before = len(calls)
        figures.report_run._panels(path, model, (data.x[:1], data.y[:1], ids), plan, about)
        return len(calls) - before

    assert panels(Plan(), [0], about) == 3
    assert panels(Plan(), [0], about) == 0
    assert panels(Plan(eps=0.2), [0], about) == 3
    assert panels(Plan(eps=0.2), [1], about) == 3
    assert panels(Plan(eps=0.2), [1], {**about, "model_sha256": "n"}) == 3
    assert json.loads(path.read_text(encoding="utf-8"))["about"]["model_sha256"] == "n"


def test_a_network_of_three_classes_gets_its_attacks(tmp_path: Path) -> None:
    every, odd = digits("test"), linear(side=8, classes=3).eval()
    with torch.no_grad():
        odd[2].bias[0] += 10.0
    data = Data(every.x[:4], torch.zeros(4, dtype=torch.int64), every.id[:4])
    about = {"command": "c", "commit": "d", "weights": "e"}
    plan = Plan(eps=0.01, n=50, images=2)
    store = measure(odd, data, names=("m", "d"), indices=":", plan=plan, out=tmp_path, about=about)
    with Store(store) as file:
        assert [len(run.settings["attacks"]) for run in attack_results(file)] == [2, 1], "no target, then FMN"
    text = page_of(store, tmp_path).text
    assert "Not in this store" not in text
    assert "Not measured" not in text


class Doubled(nn.Module):
    """A layer without a rule."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_a_network_without_rules_gets_what_can_be_had(model: nn.Module, tmp_path: Path) -> None:
    odd = nn.Sequential(model, Doubled()).eval()
    plan = Plan(n=100, images=3)
    about = {"command": "c", "commit": "d", "weights": "e"}
    store = measure(odd, digits("test"), names=NAMES, indices=":4", plan=plan, out=tmp_path, about=about)
    text = page_of(store, tmp_path).text
    assert "IBP was not run: " in text
    assert "CROWN-IBP was not run: " in text
    assert "No proved bound: " in text
    assert "Smoothing (run 1)" in text
    # None is right: there is nothing to attack, and the page says so.
    data, wrong = digits("test"), nn.Sequential(model, Reversed()).eval()
    chosen = data.x[:3], data.y[:3], [0, 1, 2]
    held = figures.report_run._attempt(figures.report_run._masking, wrong, chosen, plan)
    section, *_ = panel_sections({"masking": held}, "")
    assert section.missing[0].text.startswith("Not measured: need an example that is classified correctly")


class Reversed(nn.Module):
    """Turns logits around."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


def test_a_folder_is_about_one_network(model: nn.Module, tmp_path: Path) -> None:
    verify(tmp_path / STORE, IBP(Threat("Linf", 0.01)), digits_mlp().eval(), digits("test"), names=NAMES, indices=":2")
    with pytest.raises(InputError, match=r"^need a folder of this network and data set; .*give --weights$"):
        measure(model, digits("test"), names=NAMES, indices=":2", plan=Plan(), out=tmp_path, about={})


def test_a_record_about_another_network_is_not_shown(full: Path, tmp_path: Path) -> None:
    copy = tmp_path / "s.sqlite"
    copy.write_bytes(full.read_bytes())
    with Store(copy) as store:
        model_sha256, data_sha256 = identity(networks(store)[0].settings)
    for about, shown in ((model_sha256, True), ("0" * 64, False)):
        record = {
            "format": 1,
            "about": {"model_sha256": about, "data_sha256": data_sha256, "command": "the command"},
            "masking": {"reason": "the moon was full"},
        }
        record_of(copy).write_text(json.dumps(record), encoding="utf-8")
        text = page_of(copy, tmp_path).text
        assert ("Not measured: the moon was full." in text) is shown
        assert ("command: the command" in text) is shown


def test_a_refuted_lipschitz_bound_is_no_panel(model: nn.Module, tmp_path: Path, monkeypatch: Any) -> None:
    genuine = figures.report_run.local_lipschitz

    def halved(*args: Any, **kwargs: Any) -> Any:
        from dataclasses import replace

        found = genuine(*args, **kwargs)
        return replace(found, operator=found.operator / 100)

    monkeypatch.setattr(figures.report_run, "local_lipschitz", halved)
    data = digits("test")
    with pytest.raises(Contradiction, match=r"^a slope was met in Linf 0\.01 that exceeds its proved Lipschitz bound$"):
        figures.report_run._lipschitz(model, (data.x[:2], data.y[:2], [0, 1]), Plan())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "L1"}, r"^need norm Linf or L2 and eps > 0; got 'L1', 0\.1$"),
        ({"eps": 0.0}, r"^need norm Linf or L2 and eps > 0; got 'Linf', 0\.0$"),
        ({"sigma": 0.0}, r"sigma"),
        ({"n": 0}, r"^need an integer n >= 1; got 0$"),
        ({"images": 0}, r"^need an integer images >= 1; got 0$"),
        ({"seed": -1}, r"seed"),
    ],
)
def test_plans_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Plan(**options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "need either --model and --data, or --store"),
        (["--model", "a:b"], "need either --model and --data, or --store"),
        (["--store", "s", "--model", "a:b", "--data", "c:d"], "need either --model and --data, or --store"),
        (["--model", "a:b", "--data", "c:d", "--eps", "0.1,0.2"], "need one eps; got '0.1,0.2'"),
    ],
)
def test_commands_that_do_not_fit_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(figures.__main__.app, ["report", "--out", str(tmp_path), *words], catch_exceptions=False)


def test_reach_is_where_every_ball_holds_grey() -> None:
    x = torch.rand(3, 1, 4, 4)
    for norm in ("Linf", "L2"):
        reach = Plan(norm=norm).reach(x)  # type: ignore[arg-type]
        corner = torch.zeros(16)
        order = torch.inf if norm == "Linf" else 2
        assert float(torch.linalg.vector_norm(corner - 0.5, order)) == pytest.approx(reach)


# --- the pictures -------------------------------------------------------------------------------------------------


def a_known(**changes: Any) -> Known:
    values: dict[str, Any] = {
        "example": np.arange(4),
        "label": np.zeros(4, np.int64),
        "lower": np.array([0.1, 0.0, 0.2, 0.0]),
        "upper": np.array([0.3, 0.0, np.inf, 0.25]),
        "proved_by": [""] * 4,
        "found_by": [""] * 4,
        "attacked": np.ones(4, np.bool_),
        "budget": np.full(4, 0.4),
    }
    return Known(**(values | changes))


def test_what_a_bracket_shows() -> None:
    figure = Figure()
    draw_brackets(figure, a_known(), "Linf")
    (axes,) = figure.axes
    marks = {str(line.get_label()): line for line in axes.lines}
    found = marks["nearest error found: r* is at most this"]
    assert list(found.get_ydata()) == [0.25, 0.3]
    proved = marks["proved: r* is at least this"]
    assert list(zip(proved.get_xdata(), proved.get_ydata(), strict=True)) == [(3, 0.1), (4, 0.2)]
    assert list(marks["misclassified as it is: r* = 0"].get_xdata()) == [1]
    searched = marks["no error found up to 0.4"]
    assert (list(searched.get_xdata()), list(searched.get_ydata())) == ([4], [0.4])
    assert len({line.get_marker() for line in axes.lines}) == len(axes.lines), "told apart without colour"
    (segments,) = axes.collections
    ends = [(path.vertices[0, 1], path.vertices[1, 1]) for path in segments.get_paths()]
    assert ends[:3] == [(0.0, 0.0), (0.0, 0.25), (0.1, 0.3)]
    assert ends[3][0] == 0.2
    assert ends[3][1] > 0.4


def test_a_bracket_ends_its_search_where_each_example_did() -> None:
    figure = Figure()
    budget, upper = np.array([0.1, 0.4, 0.3, 0.1]), np.array([np.inf, 0.2, np.inf, np.inf])
    draw_brackets(figure, a_known(lower=np.zeros(4), upper=upper, budget=budget), "Linf")
    (axes,) = figure.axes
    marks = {str(line.get_label()): line for line in axes.lines}
    searched = marks["no error found up to this mark, at 0.1 to 0.3"]
    assert list(zip(searched.get_xdata(), searched.get_ydata(), strict=True)) == [(2, 0.1), (3, 0.1), (4, 0.3)]
    # Nothing bounds r* of these from above: their lines go to the top, past every mark.
    (segments,) = axes.collections
    assert [path.vertices[1, 1] > 0.3 for path in segments.get_paths()] == [False, True, True, True]


def test_a_bracket_without_attacks_or_proofs_is_still_drawn() -> None:
    figure = Figure()
    draw_brackets(figure, a_known(attacked=np.zeros(4, np.bool_), upper=np.full(4, np.inf)), "L2")
    proved, silent = figure.axes[0].lines
    assert (proved.get_label(), silent.get_label()) == (
        "proved: r* is at least this",
        "nothing proved, and not attacked",
    )
    assert list(silent.get_ydata()) == [0.0, 0.0]
    assert figure.axes[0].get_xlabel() == "example, by what is proved"
    figure = Figure()
    nothing = a_known(attacked=np.zeros(4, np.bool_), upper=np.full(4, np.inf), lower=np.zeros(4))
    draw_brackets(figure, nothing, "L2")
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[1, 2, 3, 4]]
    caption = report_sections._brackets("g", nothing, "L2").caption
    assert caption.endswith("Of 4 nothing is proved: the certificates abstain there, or are about another class.")
    assert "nothing is proved" not in report_sections._brackets("f", a_known(), "L2").caption


def test_many_marks_become_pixels() -> None:
    k = 1500
    many = a_known(
        example=np.arange(k),
        label=np.zeros(k, np.int64),
        lower=np.linspace(0, 0.1, k),
        upper=np.linspace(0.2, 0.3, k),
        attacked=np.ones(k, np.bool_),
        budget=np.full(k, 0.4),
    )
    address = picture(lambda figure: draw_brackets(figure, many, "Linf"))
    assert len(address) < 300_000
    assert address == picture(lambda figure: draw_brackets(figure, many, "Linf"))


def test_panels_draw_what_they_are_given() -> None:
    figure = Figure()
    spectrum = {"eigenvalues": [3.0, -1.0], "residuals": [0.1, 0.2], "converged": [True, False]}
    draw_curvature(figure, spectrum, {"value": 2.0, "interval": [1.0, 4.0]})
    left, right = figure.axes
    assert [c.get_label() for c in left.containers] == ["converged; bar: residual", "not converged; bar: residual"]
    assert [list(c.lines[0].get_ydata()) for c in left.containers] == [[3.0], [-1.0]]
    (bar,) = right.containers[0].lines[2]
    assert bar.get_segments()[0][:, 1].tolist() == [1.0, 4.0]
    figure = Figure()
    near = {"eps": 0.01, "sampled": [2.0, 1.0], "certified": [5.0, 3.0]}
    draw_lipschitz(figure, [near, {"eps": 0.1, "sampled": [4.0, 3.0]}], 10.0)
    first, second = figure.axes
    assert [list(line.get_ydata()) for line in first.lines] == [[3.0, 5.0], [1.0, 2.0], [10.0, 10.0]]
    assert [list(line.get_ydata()) for line in second.lines] == [[3.0, 4.0], [10.0, 10.0]]
    assert first.get_yscale() == "log"
    figure = Figure()
    draw_lipschitz(figure, [{"eps": 0.1, "sampled": [0.0, 1.0]}], None)
    assert figure.axes[0].get_yscale() == "linear"


def test_what_is_proved_near_zero_gets_a_panel(full: Path) -> None:
    with Store(full) as store:
        results = store.results()[0]
    row = row_of(results, np.linspace(0, 1, 401).tolist())
    attacked = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.5, 0.1]), np.array([1.0, 0.7, 0.3]), "not broken"
    figure = Figure()
    draw_curves(figure, [row], attacked, "Linf")
    whole, near = figure.axes
    assert whole.get_xlim() == (0.0, 1.0)
    reach = float(results.scores().max())
    assert 0.9 * reach < near.get_xlim()[1] < 1.2 * reach
    for axes in (whole, near):
        certified, unbroken = axes.lines
        np.testing.assert_array_equal(certified.get_ydata(), row.accuracy.observed)
        assert list(unbroken.get_ydata()) == [1.0, 0.5, 0.1]
        assert certified.get_linestyle() == unbroken.get_linestyle() == "-"
        assert certified.get_marker() == MARKS[0]
        assert unbroken.get_marker() not in MARKS, "told apart from every curve, without colour"
    figure = Figure()
    draw_curves(figure, [row_of(results, np.linspace(0, reach, 50).tolist())], None, "Linf")
    assert len(figure.axes) == 1


@pytest.mark.parametrize(("most", "scale"), [(4.532286807894707, "linear"), (40.0, "log")])
def test_slopes_that_are_all_the_same_have_an_axis_too(most: float, scale: str) -> None:
    slope = 4.532286807894707
    balls = [{"eps": eps, "sampled": [slope, slope], "certified": [most, most]} for eps in (0.001, 0.01)]
    figures_made: list[Figure] = []

    def draw(figure: Figure) -> None:
        draw_lipschitz(figure, balls, most)
        figures_made.append(figure)

    picture(draw)
    assert figures_made[0].axes[0].get_yscale() == scale


def test_legends_are_broken_into_lines_and_the_picture_grows_by_them() -> None:
    heights = []
    for label in ("short", "a label of many words " * 6):
        figure = Figure()
        attacked = np.array([0.0, 1.0]), np.array([1.0, 0.5]), np.array([1.0, 0.7]), label
        draw_curves(figure, [], attacked, "Linf")
        (text,) = figure.legends[0].get_texts()
        assert max(map(len, text.get_text().splitlines())) <= 44
        heights.append(figure.get_figheight())
    assert heights[1] > heights[0] + 0.3


def test_dollar_signs_are_no_mathematics() -> None:
    figure = Figure()
    text = figure.text(0.5, 0.5, plain("a $x_1$ b"))
    assert text._preprocess_math(text.get_text()) == ("a $x_1$ b", False)


def test_browsers_report_no_error(full_page: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    messages: list[str] = []
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch(executable_path=shutil.which("chromium"))  # None: playwright's own
        except playwright.Error as error:
            pytest.skip(f"no chromium for playwright: {error}")
        page = browser.new_page(viewport={"width": 360, "height": 700})
        page.on("console", lambda message: messages.append(message.text))
        page.on("request", lambda request: messages.append(request.url) if request.url.startswith("http") else None)
        page.goto(full_page.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        ends = "[...document.querySelectorAll('caption span')].map(e => e.getBoundingClientRect().right)"
        assert max(page.evaluate(ends)) <= 360, "captions are whole beside a table that scrolls"
        browser.close()
    assert messages == []
