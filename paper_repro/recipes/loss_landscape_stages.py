"""The stages of `loss_landscape`: networks by budget and by schedule, looked at, attacked, and bounded."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from analysis.adversarial_curvature import AdversarialLoss, curvature, inner_maximum, random_directions
from analysis.attacks import PGD, Attack
from analysis.curves import restart_curve
from analysis.grid import Grid, pgd_grid
from analysis.lanczos import Lanczos
from analysis.landscape import Landscape, filter_normalized, random_direction
from analysis.linear import constant_threshold
from analysis.linear_experiment import ThresholdExperiment
from analysis.lipschitz import sampled_lipschitz
from analysis.masking import MaskingReport, masking_report
from analysis.masking_attacks import Effort
from analysis.oscillation import OscillationSearch
from analysis.records import write_record
from analysis.scattering import gradient_line
from certify import Stream, Threat, local_lipschitz
from certify.campaign.weights import load_weights
from certify.threat import Norm
from paper_repro.models.checkpoint import WEIGHTS
from paper_repro.recipes.bench import Bench, Setting, spaced
from paper_repro.recipes.checklist import masking_record
from paper_repro.recipes.records import Record, gather
from paper_repro.training import (
    FastTraining,
    PGDTraining,
    Ramp,
    SoftmaxEnsemble,
    Training,
    average_weights,
    hold_out,
    most_robust,
    read_history,
)

WARMED = "constant after warm-up"
_LONGER = 10
"""Times the steps of the longest grid: 1000 where it has 100, as the review asks."""
VARIANTS = (
    "constant",
    WARMED,
    "constant, most robust epoch",
    "linear",
    "cosine",
    "periodic constant",
    "periodic constant, ensemble",
    "periodic cosine",
    "periodic cosine, ensemble",
    "periodic cosine, averaged weights",
    "one step with random start",
)


@dataclass(frozen=True, slots=True)
class LossLandscape:
    """The experiment.

    Args:
        setting: Data, network, seeds.
        sweep: Budgets of the training whose landscape is looked at; 0 is plain training.
        target: The largest budget, that of the schedules.
        pgd: Of training; its threat is replaced by each budget.
        warm_up: Of the sweep, without which a network can stay at the constant classifier for good.
        training: Of every network.
        cycles: Epochs at which the periodic schedules restart, the last one `training.epochs`.
        held_out: Training images that choose the most robust epoch.
        lanczos: Of the Hessian with frozen perturbations.
        attack: The adversary of the landscape.
        step: h, the distance in parameter space of the re-attacked curvature.
        images: Training images of the landscape.
        ladder: Of the robust accuracies.
        others: Budgets in the norms that training did not see.
        elsewhere: The ladder there, of attacks for any norm.
        grid_steps: PGD's steps in its grid of step sizes.
        restarts: Of PGD, in the curve of restarts.
        black_box: Attacks without gradients.
        attacked: Test images in the grid, the restarts and the black-box attacks.
        oscillation: Budgets of the sampled and the certified oscillation of the gradient.
        oscillated: Test images there.
        linear: Experiments around the threshold of the linear theory.
        points: Of the lines in parameter space.
        effort: Of the checklist of gradient masking.
        checked: Test images there.
    """

    setting: Setting
    sweep: tuple[float, ...]
    target: float
    pgd: PGDTraining
    warm_up: Ramp
    training: Training
    cycles: tuple[int, ...]
    held_out: int
    lanczos: Lanczos
    attack: PGD
    step: float
    images: int
    ladder: tuple[Attack, ...]
    others: dict[Norm, float]
    elsewhere: tuple[Attack, ...]
    grid_steps: tuple[int, ...]
    restarts: int
    black_box: tuple[Attack, ...]
    attacked: int
    oscillation: tuple[float, ...]
    oscillated: int
    linear: tuple[ThresholdExperiment, ...]
    points: int
    effort: Effort
    checked: int

    @property
    def threat(self) -> Threat:
        """Of the schedules and their evaluation."""
        return Threat("Linf", self.target)

    def adversarial(self, eps: float, ramp: Ramp | None = None) -> PGDTraining:
        """Training by PGD at a budget; at 0 the attack stays at x, and this is plain training."""
        size = None if self.pgd.step_size is None else self.pgd.step_size * eps / self.target
        return replace(self.pgd, threat=Threat("Linf", eps), step_size=size or None, ramp=ramp)


def _at(bench: Bench, eps: float, seed: int) -> nn.Module:
    config: LossLandscape = bench.config
    return bench.fit(f"eps {eps:g}", config.adversarial(eps, config.warm_up), config.training, seed)


def _budgets(config: LossLandscape) -> dict[str, float]:
    """The sweep by printed value; 8/255 prints with fewer digits than it has."""
    return {f"{eps:g}": eps for eps in config.sweep}


def landscape(bench: Bench) -> Record:
    """Top eigenvalues with the perturbations frozen, and the curvature along two directions frozen and re-attacked."""
    config: LossLandscape = bench.config
    data = spaced(bench.train, config.images)
    x, y = data.x.to(bench.device), data.y.to(bench.device)
    budgets = _budgets(config)

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        eps, rng = budgets[name], Stream(seed).child("landscape")
        inner = inner_maximum(config.attack, threat=Threat("Linf", eps), rng=rng.child("attack"))
        loss = AdversarialLoss(_at(bench, eps, seed), x, y, inner)
        spectrum = config.lanczos(loss.frozen, rng=rng.child("lanczos"))
        some = random_directions(loss, 1, rng=rng.child("direction"))
        top = spectrum.eigenvectors[:, :1]
        along = curvature(loss, torch.cat([top, some.to(top)], 1), h=config.step)
        line = gradient_line(loss, top[:, 0], torch.linspace(-1, 1, config.points, dtype=torch.float64) * config.step)
        return {
            "eigenvalues": spectrum.eigenvalues.cpu().numpy(),
            "residuals": spectrum.residuals.cpu().numpy(),
            "frozen": along.frozen.numpy(),
            "held": along.held.numpy(),
            "reattacked": along.reattacked.numpy(),
            "line_frozen": line.frozen.cpu().numpy(),
            "line_reattacked": line.reattacked.cpu().numpy(),
            "jump": np.array(line.jump.size),
        }

    names = list(budgets)
    arrays = gather(names, config.setting.seeds, measure)
    roles = {"least": names[0], "largest": names[-1]}
    notes = {"names": names, "roles": roles, "h": config.step, "lanczos": repr(config.lanczos), "images": config.images}
    return Record(arrays, notes)


def gradients(bench: Bench) -> Record:
    """Loss and norms of minibatch gradients over training, by budget."""
    config: LossLandscape = bench.config
    budgets = _budgets(config)
    names = list(budgets)

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        _at(bench, budgets[name], seed)
        rows = read_history(bench.folder(f"eps {name}", seed))
        return {key: np.array([row[key] for row in rows]) for key in ("loss", "gradient_norm", "gradient_norm_sd")}

    roles = {"least": names[0], "largest": names[-1]}
    return Record(gather(names, config.setting.seeds, measure), {"names": names, "roles": roles})


def _variant(bench: Bench, name: str, seed: int) -> nn.Module:
    """A network of the schedules' comparison, all of the same number of updates."""
    config: LossLandscape = bench.config
    base, use = (name.partition(", ")[k] for k in (0, 2))
    if base == "one step with random start":
        return bench.fit(base, FastTraining(config.threat, ramp=config.warm_up), config.training, seed)
    if name == WARMED:
        return _at(bench, config.target, seed)
    if use == "most robust epoch":
        return _most_robust_epoch(bench, seed)
    target = config.target
    ramps = {
        "constant": None,
        "linear": Ramp("linear", high=2 * target),
        "cosine": Ramp("cosine", high=1.5 * target),
    }
    periodic, shape = base.startswith("periodic"), base.removeprefix("periodic ")
    training = config.training
    if periodic:
        training = replace(training, schedule="periodic", cycle_ends=config.cycles)
    network = bench.fit(base, config.adversarial(target, ramps[shape]), training, seed)
    ends = [bench.folder(base, seed) / f"epoch-{end}" / WEIGHTS for end in config.cycles]
    if use == "ensemble":
        return SoftmaxEnsemble([load_weights(bench.make(), end) for end in ends]).eval()
    if use == "averaged weights":
        return average_weights(bench.make(), ends, bench.train)
    return network


def _most_robust_epoch(bench: Bench, seed: int) -> nn.Module:
    """The best of all epochs of constant training, by images held out of it."""
    config: LossLandscape = bench.config
    rest, held = hold_out(bench.train, config.held_out, Stream(seed).child("held out"))
    name, training = "constant, images held out", config.training
    kept = tuple(range(1, training.epochs + 1))
    network = bench.fit(name, config.adversarial(config.target), replace(training, keep=kept), seed, data=rest)
    files = [bench.folder(name, seed) / f"epoch-{epoch}" / WEIGHTS for epoch in kept]
    most_robust(network, files, held, config.attack, threat=config.threat, rng=Stream(seed).child("choice"))
    return network


def schedules(bench: Bench) -> Record:
    """Robust accuracy by schedule of the budget, with and without the ensemble of the cycles' ends."""
    config: LossLandscape = bench.config

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        rows = bench.attack(name, _variant(bench, name, seed), config.ladder, config.threat, seed)
        return {"correct": rows.correct, "distance": rows.distance}

    arrays = gather(VARIANTS, config.setting.seeds, measure)
    notes = {"names": list(VARIANTS), "threat": repr(config.threat), "ladder": [repr(a) for a in config.ladder]}
    return Record(arrays, {**notes, "example": bench.test.id.tolist()})


def norms(bench: Bench) -> Record:
    """The networks of two schedules in norms that they were not trained in."""
    config: LossLandscape = bench.config
    names = [WARMED, "cosine"]

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        network = _variant(bench, name, seed)
        found: dict[str, NDArray[np.generic]] = {}
        for norm, eps in config.others.items():
            found[norm] = bench.attack(name, network, config.elsewhere, Threat(norm, eps), seed).distance
        return found

    notes = {"names": names, "budgets": config.others, "ladder": [repr(a) for a in config.elsewhere]}
    return Record(gather(names, config.setting.seeds, measure), notes)


def effort(bench: Bench) -> Record:
    """How robust accuracy answers to PGD's step size, to restarts, and to attacks without gradients."""
    config: LossLandscape = bench.config
    data = spaced(bench.test, config.attacked)
    x, y = data.x.to(bench.device), data.y.to(bench.device)
    cells: list[tuple[int, float]] = []

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        network, rng = _variant(bench, name, seed), Stream(seed).child("effort")
        grid = pgd_grid(network, x, y, threat=config.threat, rng=rng.child("grid"), steps=config.grid_steps)
        cells[:] = _cells(grid, config.target)
        chosen = replace(grid.chosen.attack, restarts=1)
        curve = restart_curve(network, x, y, chosen, config.restarts, threat=config.threat, rng=rng.child("restarts"))
        count = config.attacked
        white = bench.attack(name, network, config.ladder, config.threat, seed, count)
        black = bench.attack(f"{name}, black box", network, config.black_box, config.threat, seed, count)
        return {
            **_grid_arrays(grid),
            "restarts": np.array(curve.robust),
            "residual": np.array(curve.residual),
            "white": np.isinf(white.distance),
            "black": np.isinf(black.distance),
        }

    names = [WARMED, "cosine"]
    arrays = gather(names, config.setting.seeds, measure)
    notes = {"names": names, "cells": cells, "n": config.attacked, "black box": [repr(a) for a in config.black_box]}
    return Record(arrays, {**notes, "eps": config.target})


def longer(bench: Bench) -> Record:
    """The step sizes of `effort` from the same starts, at ten times the most steps that are tried there."""
    config: LossLandscape = bench.config
    data = spaced(bench.test, config.attacked)
    x, y = data.x.to(bench.device), data.y.to(bench.device)
    steps = _LONGER * max(config.grid_steps)
    cells: list[tuple[int, float]] = []

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        rng = Stream(seed).child("effort").child("grid")
        grid = pgd_grid(_variant(bench, name, seed), x, y, threat=config.threat, rng=rng, steps=(steps,))
        cells[:] = _cells(grid, config.target)
        return _grid_arrays(grid)

    names = [WARMED, "cosine"]
    arrays = gather(names, config.setting.seeds, measure)
    return Record(arrays, {"names": names, "cells": cells, "n": config.attacked, "eps": config.target})


def _cells(grid: Grid, target: float) -> list[tuple[int, float]]:
    """Steps and step size, the latter in parts of the budget."""
    return [(c.attack.steps, (c.attack.step_size or 0.0) / target) for c in grid.cells]


def _grid_arrays(grid: Grid) -> dict[str, NDArray[np.generic]]:
    return {key: np.array([getattr(c, key) for c in grid.cells]) for key in ("robust", "loss", "late_gain")}


def lipschitz(bench: Bench) -> Record:
    """Local Lipschitz constants of the logits around test images, Linf to Linf: met, and proved."""
    config: LossLandscape = bench.config
    data = spaced(bench.test, config.oscillated)
    x, y = data.x.to(bench.device), data.y.to(bench.device)
    cells = {f"{network}, {eps:g}": (network, eps) for network in ("plain", WARMED) for eps in config.oscillation}

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        (network, eps), rng = cells[name], Stream(seed).child("lipschitz")
        model = _at(bench, 0.0, seed) if network == "plain" else _variant(bench, network, seed)
        threat = Threat("Linf", eps)
        proved = local_lipschitz(model, x, threat, y=y)
        met = sampled_lipschitz(model, x, threat, rng=rng, y=y)
        return {
            "sampled": met.operator.double().cpu().numpy(),
            "certified": proved.operator.cpu().numpy(),
            "product": np.array(proved.product),
        }

    return Record(gather(list(cells), config.setting.seeds, measure), {"names": list(cells)})


def oscillation(bench: Bench) -> Record:
    """How far the parameter gradient moves while the input moves within eps: met, and proved, ReLU or not."""
    config: LossLandscape = bench.config
    data = spaced(bench.test, config.oscillated)
    x, y = data.x.to(bench.device), data.y.to(bench.device)
    names = [f"{eps:g}" for eps in config.oscillation]

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        rng = Stream(seed).child("oscillation")
        found = OscillationSearch()(_variant(bench, WARMED, seed), x, y, threat=Threat("Linf", float(name)), rng=rng)
        return {"sampled": found.sampled.numpy(), "certified": found.certified.numpy()}

    return Record(gather(names, config.setting.seeds, measure), {"names": names})


def linear(bench: Bench) -> Record:
    """The budget from which on a linear classifier can only be constant: in training, and that of the data."""
    config: LossLandscape = bench.config
    ratios = (0.9, 0.99, 1.01, 1.1)
    names = [f"{'-'.join(map(str, e.counts))}, {e.norm}" for e in config.linear]

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        found = config.linear[names.index(name)](ratios, rng=Stream(seed).child("linear", name))
        return {"size": found.size().numpy(), "gain": found.gain().numpy(), "gap": found.gap().numpy()}

    arrays = gather(names, config.setting.seeds, measure)
    norms: tuple[Norm, ...] = ("Linf", "L2")
    of_data = {norm: constant_threshold(bench.train.x, bench.train.y, norm).upper for norm in norms}
    tolerance = max(e.tolerance for e in config.linear)
    notes = {"names": names, "ratios": list(ratios), "thresholds": of_data, "tolerance": tolerance}
    return Record(arrays, {**notes, "data": bench.setting.data})


def weights(bench: Bench) -> Record:
    """The loss along a random filter-normalised line through the weights: clean, with frozen attacks, attacked anew."""
    config: LossLandscape = bench.config
    data = spaced(bench.train, config.images)
    x, y = data.x.to(bench.device), data.y.to(bench.device)
    kinds = {"clean": Landscape(), "frozen": Landscape(config.attack, True), "re-attacked": Landscape(config.attack)}
    axis = torch.linspace(-1, 1, config.points, dtype=torch.float64)

    def network(name: str, seed: int) -> nn.Module:
        return _at(bench, 0.0, seed) if name == "plain" else _variant(bench, name, seed)

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        subject, kind = name.split(", ")
        model, method, rng = network(subject, seed), kinds[kind], Stream(seed).child("weights")
        direction = filter_normalized(model, random_direction(model, rng.child("direction")))
        threat = None if method.attack is None else config.threat
        found = method(model, x, y, [direction], [axis], threat=threat, rng=rng.child("attack"))
        if seed == config.setting.seeds[0]:
            provenance = {
                "command": "landscape",
                "method": repr(method),
                "directions": "random, filter-normalised",
                "norm": "Linf",
                "eps": 0.0 if threat is None else threat.eps,
                "name": subject,
            }
            file = bench.results / "weight_surface" / f"{name.replace(', ', '-')}.npz"
            write_record(file, {"loss": found.loss, "axis0": axis}, provenance)
        return {"loss": found.loss.cpu().numpy()}

    names = [f"{subject}, {kind}" for subject in ("plain", WARMED, "cosine") for kind in kinds]
    return Record(gather(names, config.setting.seeds, measure), {"names": names, "axis": axis.tolist()})


def masking(bench: Bench) -> Record:
    """The checklist of gradient masking: for every check whether it was passed (0), open (1) or flagged (2)."""
    config: LossLandscape = bench.config
    data = spaced(bench.test, config.checked)
    x, y = data.x.to(bench.device), data.y.to(bench.device)

    def look(name: str, seed: int) -> MaskingReport:
        network, other = _variant(bench, name, seed), _at(bench, 0.0, seed)
        rng = Stream(seed).child("masking")
        return masking_report(network, x, y, threat=config.threat, rng=rng, effort=config.effort, surrogate=other)

    names = [WARMED, "cosine", "one step with random start"]
    return masking_record(names, config.setting.seeds, look, {"effort": repr(config.effort)})
