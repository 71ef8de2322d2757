"""Free adversarial training: what m replays give, and what they cost, beside plain and PGD training."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from analysis.attacks import APGD, PGD, Attack, Square, TargetedAPGD
from analysis.boundary_distance import NoiseAndBoundary
from analysis.noise_curve import NoiseLevels
from analysis.surface import InputSurface
from certify import Stream, Threat
from paper_repro.data import Data
from paper_repro.recipes.bench import Bench, Setting, spaced
from paper_repro.recipes.cost import cost_record, cost_table, passes
from paper_repro.recipes.recipe import Above, Claim, Near, Recipe, Table
from paper_repro.recipes.records import Record, Records, gather, short_threat
from paper_repro.recipes.statistics import Measured, average, difference, mean_of, over_seeds, share
from paper_repro.recipes.surfaces import NUMBERS, surface_arrays, write_surface
from paper_repro.training import Erm, FastTraining, FreeTraining, PGDTraining, Ramp, Trades, Training
from paper_repro.training.fit import Method


@dataclass(frozen=True, slots=True)
class FreeAt:
    """The experiment.

    Args:
        setting: Data, network, seeds.
        threat: Of training and test.
        training: Of the largest budget. `step_epochs` shrinks with smaller ones.
        epochs: Budgets: epochs of updates, replays counted. The last one is `training`'s.
        replays: Values of m; a cell with m > epochs is impossible, for no batch would be met m times.
        main: The m that plain and PGD training are compared with; one of `replays`.
        pgd: Training by several steps, K + 1 passes an update.
        ladder: Of the robust accuracies.
        noise: Levels of the accuracy in noise.
        surface: Of the loss around test images.
        surface_images: How many.
        labelled: Shares of the training images that keep their labels in the data budget.
        boundary: Of the distance to the nearest error against what errors in noise predict.
        boundary_images: How many test images.
        cost_updates: Updates that a cost is the median of.
    """

    setting: Setting
    threat: Threat
    training: Training
    epochs: tuple[int, ...]
    replays: tuple[int, ...]
    main: int
    pgd: PGDTraining
    ladder: tuple[Attack, ...]
    noise: NoiseLevels
    surface: InputSurface
    surface_images: int
    labelled: tuple[float, ...]
    boundary: NoiseAndBoundary
    boundary_images: int
    cost_updates: int = 20


def _budget(config: FreeAt, epochs: int) -> Training:
    shrunk = max(1, round(config.training.step_epochs * epochs / config.training.epochs))
    return replace(config.training, epochs=epochs, step_epochs=shrunk)


def _networks(config: FreeAt) -> tuple[dict[str, tuple[Method, Training]], dict[str, str]]:
    """Every network of the grid by name, and the roles that some of them play."""
    full = config.training.epochs
    cheap = max(1, full // (config.pgd.steps + 1))
    grid: dict[str, tuple[Method, Training]] = {f"plain, {full} epochs": (Erm(), _budget(config, full))}
    for epochs in config.epochs:
        for m in config.replays:
            if m <= epochs:
                free = FreeTraining(config.threat, m)
                grid[f"free m={m}, {epochs} epochs"] = (free, _budget(config, epochs))
    roles = {
        "plain": f"plain, {full} epochs",
        "free": f"free m={config.main}, {full} epochs",
        "free, least m": f"free m={min(m for m in config.replays if m > 1)}, {full} epochs",
        "pgd": f"pgd, {full} epochs",
        "pgd at the cost of free": f"pgd, {cheap} epochs",
    }
    for role, epochs in (("pgd", full), ("pgd at the cost of free", cheap)):
        grid[roles[role]] = (config.pgd, _budget(config, epochs))
    return grid, roles


def _trained(bench: Bench, name: str, seed: int) -> nn.Module:
    method, training = _networks(bench.config)[0][name]
    return bench.fit(name, method, training, seed)


def grid(bench: Bench) -> Record:
    """Clean and robust accuracy of every cell: plain, Free-m by budget, PGD at equal updates and at equal cost."""
    config: FreeAt = bench.config
    networks, roles = _networks(config)

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        rows = bench.attack(name, _trained(bench, name, seed), config.ladder, config.threat, seed)
        return {"correct": rows.correct, "distance": rows.distance, "broken_by": rows.broken_by}

    arrays = gather(list(networks), config.setting.seeds, measure)
    notes = {
        "names": list(networks),
        "roles": roles,
        "example": bench.test.id.tolist(),
        "epochs": list(config.epochs),
        "replays": list(config.replays),
        "ladder": [repr(a) for a in config.ladder],
        "threat": repr(config.threat),
    }
    return Record(arrays, notes)


def cost(bench: Bench) -> Record:
    """What an update of each method costs, all of them taking turns."""
    config: FreeAt = bench.config
    methods = {
        "plain": Erm(),
        f"free m={config.main}": FreeTraining(config.threat, config.main),
        "fgsm with random start": FastTraining(config.threat),
        f"pgd-{config.pgd.steps}": config.pgd,
        "trades-10": Trades(config.threat),
    }
    record = cost_record(bench, methods, config.training, config.cost_updates)
    roles = {"free": f"free m={config.main}", "pgd": f"pgd-{config.pgd.steps}"}
    return Record(record.arrays, {**record.notes, "roles": roles, "steps": config.pgd.steps})


def surfaces(bench: Bench) -> Record:
    """The loss over two directions of the input, for plain, Free and PGD training on the same images and axes."""
    config: FreeAt = bench.config
    _, roles = _networks(config)
    names = ["plain", "free", "pgd"]

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        network = _trained(bench, roles[name], seed)
        found = write_surface(
            bench, name, network, config.surface, config.threat, seed=seed, count=config.surface_images
        )
        return surface_arrays(found)

    return Record(gather(names, config.setting.seeds, measure), {"names": names, "roles": {}})


def noise(bench: Bench) -> Record:
    """Accuracy in Gaussian noise that none of the networks was trained on."""
    config: FreeAt = bench.config
    _, roles = _networks(config)
    names = ["plain", "free", "pgd"]

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        curve = config.noise(_trained(bench, roles[name], seed), bench.x, bench.y, rng=Stream(seed).child("noise"))
        if seed == config.setting.seeds[0]:
            curve.save(bench.results / "accuracy_in_noise" / f"{name}.npz")
        return {"right": curve.right.numpy().mean(1)}  # by level and image, over draws

    arrays = gather(names, config.setting.seeds, measure)
    notes = {"names": names, "sigmas": list(config.noise.sigmas), "example": bench.test.id.tolist()}
    return Record(arrays, notes)


def boundary(bench: Bench) -> Record:
    """The nearest error by gradients against the distance that errors in noise predict, image by image."""
    config: FreeAt = bench.config
    _, roles = _networks(config)
    names, data = ["plain", "free", "pgd"], spaced(bench.test, config.boundary_images)
    x, y = data.x.to(bench.device), data.y.to(bench.device)

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        found = config.boundary(_trained(bench, roles[name], seed), x, y, rng=Stream(seed).child("boundary"))
        if seed == config.setting.seeds[0]:
            found.save(bench.results / "boundary_distance" / f"{name}.npz")
        return {
            "sigma": found.sigma.cpu().numpy(),
            "distance": found.distance.cpu().numpy(),
            "slope": np.array(found.slope),
        }

    return Record(gather(names, config.setting.seeds, measure), {"names": names, "method": repr(config.boundary)})


def data_budget(bench: Bench) -> Record:
    """Free training on a labelled share, and on all images with a plain network's labels for the rest."""
    config: FreeAt = bench.config
    names = [f"{kind}, {part:g}" for part in config.labelled for kind in ("labelled only", "pseudo-labels") if part < 1]
    names += ["labelled only, 1"] * (1 in config.labelled)

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        kind, fraction = name.split(", ")
        data = _partly_labelled(bench, float(fraction), seed, pseudo=kind == "pseudo-labels")
        # Equal updates: fewer images are met more often.
        epochs = round(config.training.epochs * len(bench.train) / len(data))
        training = _budget(config, epochs)
        network = bench.fit(f"free on {name}", FreeTraining(config.threat, config.main), training, seed, data=data)
        rows = bench.attack(f"free on {name}", network, config.ladder, config.threat, seed)
        return {"correct": rows.correct, "distance": rows.distance}

    roles = {"least labels": names[0], "least labels and pseudo-labels": names[1]}
    arrays = gather(names, config.setting.seeds, measure)
    return Record(arrays, {"names": names, "roles": roles, "example": bench.test.id.tolist()})


def _partly_labelled(bench: Bench, fraction: float, seed: int, *, pseudo: bool) -> Data:
    """The images that keep their labels; with `pseudo` the others too, as a plain network on the former labels them."""
    count = round(fraction * len(bench.train))
    order = torch.randperm(len(bench.train), generator=Stream(seed).child("labelled").generator())
    kept = order[:count].sort().values
    labelled = Data(bench.train.x[kept], bench.train.y[kept], bench.train.id[kept])
    if not pseudo:
        return labelled
    epochs = round(bench.config.training.epochs * len(bench.train) / count)
    teacher = bench.fit(f"teacher on {fraction:g}", Erm(), _budget(bench.config, epochs), seed, data=labelled)
    with torch.no_grad():
        said = torch.cat([teacher(x.to(bench.device)).argmax(1).cpu() for x in bench.train.x.split(1000)])
    said[kept] = bench.train.y[kept]
    return Data(bench.train.x, said, bench.train.id)


def _robust(records: Records, name: str, stage: str = "grid") -> NDArray[np.bool_]:
    return np.isinf(records[stage].of("distance", name))


def _accuracies(records: Records, stage: str) -> Table:
    record = records[stage]
    body = [[n, share(record.of("correct", n)), share(_robust(records, n, stage))] for n in record.notes["names"]]
    return ["network", "clean accuracy", f"robust accuracy, {short_threat(records['grid'].notes['threat'])}"], body


def _grid_table(records: Records) -> Table:
    header, body = _accuracies(records, "grid")
    notes = records["grid"].notes
    for epochs in notes["epochs"]:
        body += [[f"free m={m}, {epochs} epochs", "impossible", "m > epochs"] for m in notes["replays"] if m > epochs]
    return header, body


def _surface_table(records: Records) -> Table:
    record = records["surfaces"]
    body = [[n, *(average(record.of(key, n)) for key in NUMBERS)] for n in record.notes["names"]]
    return ["network", *NUMBERS.values()], body


def _noise_table(records: Records) -> Table:
    record = records["noise"]
    right, levels = record.of, range(len(record.notes["sigmas"]))
    body = [[name, *(mean_of(right("right", name)[:, k]) for k in levels)] for name in record.notes["names"]]
    return ["network", *(f"sigma {s:g}" for s in record.notes["sigmas"])], body


def _boundary_table(records: Records) -> Table:
    record = records["boundary"]
    body = []
    for name in record.notes["names"]:
        sigma, distance = record.of("sigma", name), record.of("distance", name)
        used = (sigma > 0) & np.isfinite(sigma) & np.isfinite(distance)
        body.append([name, average(record.of("slope", name)), f"{used.sum()} of {used.size}"])
    return ["network", "slope of distance against prediction", "images used, all seeds"], body


def _steeper(records: Records) -> Measured:
    record = records["surfaces"]
    plain, free = record.of("highest_inside", "plain"), record.of("highest_inside", "free")
    return over_seeds(plain / free)


def _noise_gain(records: Records) -> Measured:
    record = records["noise"]
    lost = {name: record.of("right", name)[:, 0] - record.of("right", name)[:, -1] for name in ("plain", "free")}
    return difference(lost["plain"], lost["free"])


def _percent(records: Records, name: str, *, clean: bool = False) -> Measured:
    hits = records["grid"].of("correct", name) if clean else _robust(records, name)
    return over_seeds(100 * hits.mean(1))


_TABLE = "Shafahi et al. (2019), table 1, as in the README of their code"
_CLAIMS = (
    Claim(
        "An update of Free training costs what a plain one costs: passes, in multiples of plain",
        "Shafahi et al. (2019), released code: one backward pass moves weights and perturbation",
        "A",
        Near(1.0, 0.0),
        lambda r: passes(r, "free"),
        ("smoke", "small", "paper"),
    ),
    Claim(
        "An update of PGD-7 training costs eight plain ones: passes, in multiples of plain",
        "Shafahi et al. (2019), released code: K steps and the update",
        "A",
        Near(8.0, 0.5),
        lambda r: passes(r, "pgd"),
        ("small", "paper"),
    ),
    Claim(
        "Free training is more robust than plain training: difference in robust accuracy",
        _TABLE,
        "A",
        Above(),
        lambda r: difference(_robust(r, "free"), _robust(r, "plain")),
    ),
    Claim(
        "At equal cost, Free training is more robust than PGD training: difference in robust accuracy",
        f"{_TABLE}: 785 minutes against 5418 at the same robustness",
        "A",
        Above(),
        lambda r: difference(_robust(r, "free"), _robust(r, "pgd at the cost of free")),
        reasons={
            "small": "three epochs of PGD-7 already learn MNIST, with a ramp of eps that Free has not, and m = 8 is "
            "among the worst m here: m = 2 leaves 52.0 %; the published comparison is on CIFAR-10"
        },
    ),
    Claim(
        "More replays at the same budget cost clean accuracy: least m less the main one",
        _TABLE,
        "A",
        Above(),
        lambda r: difference(r["grid"].of("correct", "free, least m"), r["grid"].of("correct", "free")),
        reasons={"small": "clean accuracy is 97 to 98 % at every m: MNIST leaves nothing to trade"},
    ),
    Claim(
        "Within eps the mean loss of a plain network climbs ten times as high as that of a Free one: quotient",
        "Review of Shafahi et al. (2019): contrast figure 3 with a network that is not robust",
        "C",
        Above(10.0),
        _steeper,
    ),
    Claim(
        "Free training helps in noise that it never met: accuracy lost from no noise to the largest, plain less Free",
        "Ford et al. (2019), probably figure 7",
        "C",
        Above(),
        _noise_gain,
        reasons={"small": "Free is ahead in noise by no more than it is without noise"},
    ),
    Claim(
        "Pseudo-labels help where labels are fewest: difference in robust accuracy",
        "Carmon et al. (2019), asked for in the review of Shafahi et al. (2019)",
        "C",
        Above(),
        lambda r: difference(
            _robust(r, "least labels and pseudo-labels", "data_budget"), _robust(r, "least labels", "data_budget")
        ),
        reasons={"small": "with pseudo-labels the seeds differ by more than the methods do"},
    ),
    Claim(
        "Clean accuracy of plain training, %",
        _TABLE,
        "A",
        Near(95.01, 1.0),
        lambda r: _percent(r, "plain", clean=True),
        ("paper",),
    ),
    Claim(
        "Clean accuracy of Free-8, %",
        _TABLE,
        "A",
        Near(85.96, 3.0),
        lambda r: _percent(r, "free", clean=True),
        ("paper",),
    ),
    Claim(
        "Robust accuracy of Free-8 under the ladder, %",
        "RobustBench, AutoAttack on WRN-34-10",
        "B",
        Near(41.47, 3.0),
        lambda r: _percent(r, "free"),
        ("paper",),
    ),
)

_SMOKE = FreeAt(
    setting=Setting("paper_repro.data:digits", "paper_repro.recipes.networks:digits_mlp", 400, 60, (0, 1)),
    threat=Threat("Linf", 0.1),
    training=Training(epochs=8, batch_size=50, lr=0.1),
    epochs=(1, 8),
    replays=(2, 4),
    main=4,
    pgd=PGDTraining(Threat("Linf", 0.1), steps=3),
    ladder=(PGD(5), APGD(10)),
    noise=NoiseLevels((0.0, 0.2, 0.4), draws=2),
    surface=InputSurface(points=5, steps=3),
    surface_images=10,
    labelled=(0.5, 1.0),
    boundary=NoiseAndBoundary(mu=0.1, draws=20, tolerance=0.05, steps=10),
    boundary_images=10,
    cost_updates=3,
)

# Beside a value its source: "released code" and "review" were read [A]; numbers of sections are recalled [C]. Values
# without one are ours.
_SMALL_THREAT = Threat("Linf", 0.2)
_SMALL = FreeAt(
    setting=Setting("paper_repro.data:mnist", "paper_repro.models:wong_kolter", 10_000, 500, (0, 1, 2)),
    threat=_SMALL_THREAT,
    training=Training(epochs=30, batch_size=100, lr=0.05),
    epochs=(1, 2, 4, 8, 15, 30),  # review: m against very few epochs
    replays=(1, 2, 4, 8, 10),  # section 4.1, and 1
    main=8,  # section 4.1
    # Departs from paper: eps grows over the first half, without which no seed left the constant classifier.
    pgd=PGDTraining(_SMALL_THREAT, steps=7, ramp=Ramp(high=2 * _SMALL_THREAT.eps)),
    ladder=(PGD(20, restarts=2), APGD(50), TargetedAPGD(3, 30), Square(300)),
    noise=NoiseLevels(),  # Ford et al.: ten draws
    surface=InputSurface(points=21),
    surface_images=100,
    labelled=(0.1, 0.3, 1.0),
    boundary=NoiseAndBoundary(),
    boundary_images=100,
)

_PAPER_THREAT = Threat("Linf", 8 / 255)  # section 4.1
_PAPER = FreeAt(
    setting=Setting("paper_repro.data:cifar10", "paper_repro.models:preact_resnet18", None, 10_000, (0, 1, 2)),
    threat=_PAPER_THREAT,
    training=Training(
        epochs=205,  # released code: 80,000 updates of 128 images
        batch_size=128,  # released code
        lr=0.1,  # released code
        momentum=0.9,  # released code
        weight_decay=2e-4,  # released code
        schedule="step",  # released code: a tenth after 40,000 and again after 60,000 updates
        step_epochs=77,
    ),
    epochs=(1, 2, 4, 8, 15, 30, 205),  # review: m against very few epochs; then section 4.1
    replays=(2, 4, 8, 10),  # section 4.1, table 1
    main=8,  # section 4.1
    pgd=PGDTraining(_PAPER_THREAT, steps=7, step_size=2 / 255),  # section 4.1, after Madry et al.
    ladder=(PGD(20, 2 / 255, 10), APGD(), TargetedAPGD(), Square()),  # table 1; then AutoAttack's
    noise=NoiseLevels(),
    surface=InputSurface(),
    surface_images=200,
    labelled=(0.1, 0.3, 1.0),
    boundary=NoiseAndBoundary(),
    boundary_images=100,
)

RECIPE = Recipe(
    name="free_at",
    paper="Shafahi et al., Adversarial training for free!, NeurIPS 2019",
    scales={"smoke": _SMOKE, "small": _SMALL, "paper": _PAPER},
    stages={
        "grid": grid,
        "cost": cost,
        "surfaces": surfaces,
        "noise": noise,
        "boundary": boundary,
        "data_budget": data_budget,
    },
    tables={
        "Accuracy by budget and m": _grid_table,
        "Cost, in multiples of plain training": cost_table,
        "Input surfaces": _surface_table,
        "Accuracy in noise": _noise_table,
        "Distance to the boundary, and what noise says of it": _boundary_table,
        "Data budget": lambda records: _accuracies(records, "data_budget"),
    },
    claims=_CLAIMS,
    deviations=(
        "Images are not augmented: the training loop has no random crops and flips.",
        "The network of the paper scale is PreActResNet-18, not WRN-32-10; that of small is a small MNIST network.",
        "At the paper scale the learning rate falls after 77 and 154 of 205 epochs, not after 102 and 154.",
        "A robust accuracy is the share that no attack of the ladder breaks; the released code scores each image on "
        "the restart of highest cross-entropy, which can miss one that fools.",
        "m = 1 is one-step training with a carried perturbation, not plain training, which has a row of its own.",
        "At the small scale eps of PGD training grows over the first half of its epochs: without, all three seeds "
        "stayed at the constant classifier. That of Free training does not grow.",
        "At the small scale 10,000 images are met under a one-cycle learning rate; in the released code it is a step.",
        "ImageNet is not run.",
    ),
)
