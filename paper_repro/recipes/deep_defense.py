"""Deep Defense: whether DeepFool as a regulariser pushes the boundary away, by attacks that it was not trained with."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from analysis.attacks import APGD, DDN, FGSM, FMN, Attack, CarliniWagner, DeepFool, Square, TargetedAPGD
from analysis.distances import whole_box
from analysis.evaluation import beyond
from certify import Stream, Threat
from certify.campaign.weights import load_weights
from paper_repro.data import Data
from paper_repro.recipes.bench import Bench, Setting
from paper_repro.recipes.cost import cost_record, cost_table
from paper_repro.recipes.recipe import Above, Claim, Near, Recipe, Table
from paper_repro.recipes.records import NotRecorded, Record, Records, gather, short_threat
from paper_repro.recipes.statistics import Measured, average, difference, over_seeds, ratio, share
from paper_repro.training import (
    DeepDefense,
    DeepFoolTraining,
    Erm,
    FreeTraining,
    Parseval,
    PGDTraining,
    Trades,
    Training,
    read_history,
)
from paper_repro.training.fit import Method
from paper_repro.training.step import Step

NEAREST = "nearest of all"
"""The smallest distance over all attacks, which no attack's failure can enlarge."""

_BISECTIONS = 20


@dataclass(frozen=True, slots=True)
class Defended:
    """The experiment.

    Args:
        setting: Data, network, seeds.
        plain: Training of the network that all others start from.
        tuning: Of those; the plain network is tuned as long, as a control.
        method: Deep Defense.
        attacks: Of minimal L2 distance, by name; run everywhere in the box.
        budgets: L2 budgets of the accuracy curve, and of the ladder the middle one.
        ladder: At that fixed budget.
        batch: Training images in the histogram of linearisations.
        cost_updates: Updates that a cost is the median of.
        variants: Whether the other targets and the baselines are trained too.
    """

    setting: Setting
    plain: Training
    tuning: Training
    method: DeepDefense
    attacks: dict[str, Attack]
    budgets: tuple[float, ...]
    ladder: tuple[Attack, ...]
    batch: int
    cost_updates: int = 20
    variants: bool = True

    @property
    def threat(self) -> Threat:
        """Of the ladder."""
        return Threat("L2", self.budgets[len(self.budgets) // 2])


def _methods(config: Defended) -> dict[str, Method]:
    main: dict[str, Method] = {"control": Erm(), "deep defense": config.method}
    if not config.variants:
        return main
    return main | {
        "deep defense, nearest target": replace(config.method, target="nearest"),
        "deep defense, random target": replace(config.method, target="random"),
        "deepfool training": DeepFoolTraining(),
        "parseval": Parseval(),
    }


def _names(config: Defended) -> list[str]:
    return ["plain", *_methods(config)]


def _trained(bench: Bench, name: str, seed: int) -> nn.Module:
    config: Defended = bench.config
    plain = bench.fit("plain", Erm(), config.plain, seed)
    if name == "plain":
        return plain
    tuning = replace(config.tuning, keep=tuple(range(1, config.tuning.epochs + 1)))
    return bench.fit(name, _methods(config)[name], tuning, seed, start=bench.weights("plain", seed))


def distances(bench: Bench) -> Record:
    """L2 distance of the nearest error, by every attack on its own."""
    config: Defended = bench.config
    threat = whole_box("L2", (0.0, 1.0), bench.test.x[0].numel())

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        network = _trained(bench, name, seed)
        rows = {a: bench.attack(name, network, [attack], threat, seed) for a, attack in config.attacks.items()}
        found: dict[str, NDArray[np.generic]] = {a: r.distance for a, r in rows.items()}
        found[NEAREST] = np.minimum.reduce([r.distance for r in rows.values()])
        found["correct"] = next(iter(rows.values())).correct
        return found

    names = _names(config)
    arrays = gather(names, config.setting.seeds, measure)
    size = bench.test.x.flatten(1).double().norm(dim=1).numpy()
    notes = {
        "names": names,
        "example": bench.test.id.tolist(),
        "attacks": {name: repr(attack) for name, attack in config.attacks.items()},
        "budgets": list(config.budgets),
        "size": size.tolist(),
    }
    return Record(arrays, notes)


def ladder(bench: Bench) -> Record:
    """Which images survive a ladder of attacks at a fixed L2 budget."""
    config: Defended = bench.config
    names = _names(config)

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        rows = bench.attack(name, _trained(bench, name, seed), config.ladder, config.threat, seed)
        return {"correct": rows.correct, "distance": rows.distance}

    notes = {"names": names, "threat": repr(config.threat), "ladder": [repr(a) for a in config.ladder]}
    return Record(gather(names, config.setting.seeds, measure), notes)


def fgs(bench: Bench) -> Record:
    """The paper's own measure: accuracy under one Linf step, in parts of the step that halves Deep Defense."""
    config: Defended = bench.config
    names = _names(config)

    def survivors(network: nn.Module, seed: int, eps: float) -> NDArray[np.bool_]:
        rng = Stream(seed).child("fgs")
        return ~FGSM()(network, bench.x, bench.y, threat=Threat("Linf", eps), rng=rng).success.numpy()

    def reference(seed: int) -> float:
        network, low, high = _trained(bench, "deep defense", seed), 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            halved = float(survivors(network, seed, middle).mean()) <= 0.5
            low, high = (low, middle) if halved else (middle, high)
        return high

    eps = {seed: reference(seed) for seed in config.setting.seeds}

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        network = _trained(bench, name, seed)
        hits = [survivors(network, seed, part * eps[seed]) for part in (0.1, 0.2, 1.0)]
        return {"eps": np.array(eps[seed]), "survives": np.stack(hits)}

    return Record(gather(names, config.setting.seeds, measure), {"names": names})


def iterations(bench: Bench) -> Record:
    """Linearisations per image, before and after tuning, of right and wrong images; and where they led."""
    config: Defended = bench.config
    names = ["plain", "deep defense"]
    method, rows = config.method, slice(0, config.batch)

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        network = _trained(bench, name, seed)
        x, y = bench.train.x[rows].to(bench.device), bench.train.y[rows].to(bench.device)
        part = method.objective(network, x, y, step=Step(Stream(seed).child("iterations")))
        counts = np.zeros((2, method.max_iter + 1), np.int64)  # the last column: not across
        reached = torch.where(part.walk.across, part.walk.iterations - 1, method.max_iter).cpu().numpy()
        np.add.at(counts, ((~part.correct).cpu().numpy().astype(int), reached), 1)
        return {"counts": counts, "rho": part.rho.detach().cpu().numpy()}

    return Record(gather(names, config.setting.seeds, measure), {"names": names, "max_iter": method.max_iter})


CURVES = ("loss", "gradient_norm", "seconds")


def convergence(bench: Bench) -> Record:
    """The course of tuning with and without the regulariser: cross-entropy and accuracy after every epoch."""
    config: Defended = bench.config
    names = ["control", "deep defense"]

    def measure(name: str, seed: int) -> dict[str, NDArray[np.generic]]:
        network = _trained(bench, name, seed)
        rows = read_history(bench.folder(name, seed))
        found: dict[str, NDArray[np.generic]] = {key: np.array([row[key] for row in rows]) for key in CURVES}
        after = []
        for epoch in range(1, config.tuning.epochs + 1):
            load_weights(network, bench.folder(name, seed) / f"epoch-{epoch}" / bench.weights(name, seed).name)
            after.append([*_fit_of(network, bench.train, bench), *_fit_of(network, bench.test, bench)])
        columns = np.array(after).T
        keys = ("train cross-entropy", "train accuracy", "test cross-entropy", "test accuracy")
        return found | dict(zip(keys, columns, strict=True))

    arrays = gather(names, config.setting.seeds, measure)
    watched = [
        [[row[key] for key in ("rho", "across", "iterations")] for row in read_history(bench.folder(names[1], seed))]
        for seed in config.setting.seeds
    ]
    return Record({**arrays, "watched": np.array(watched)}, {"names": names})


def _fit_of(network: nn.Module, data: Data, bench: Bench) -> tuple[float, float]:
    loss, right = 0.0, 0
    with torch.no_grad():
        for x, y in zip(data.x.split(1000), data.y.split(1000), strict=True):
            logits, y = network(x.to(bench.device)), y.to(bench.device)
            loss += float(cross_entropy(logits, y, reduction="sum"))
            right += int((logits.argmax(1) == y).sum())
    return loss / len(data), right / len(data)


def cost(bench: Bench) -> Record:
    """What an update costs, from the weights of the plain network; what it costs while tuning is in the convergence.

    From random weights Deep Defense diverges within a few updates.
    """
    config: Defended = bench.config
    seed = config.setting.seeds[0]
    _trained(bench, "plain", seed)
    threat = Threat("Linf", 0.1)
    methods: dict[str, Method] = {
        "plain": Erm(),
        "free-8": FreeTraining(threat),
        "pgd-7": PGDTraining(threat, steps=7),
        "trades-10": Trades(threat),
        "deepfool training": DeepFoolTraining(),
        "deep defense": config.method,
    }
    # Free training meets every batch eight times, whatever the number of epochs here.
    return cost_record(bench, methods, config.tuning, config.cost_updates, bench.weights("plain", seed))


def _rho(records: Records, name: str, attack: str = NEAREST) -> NDArray[np.float64]:
    """(seeds, n) distance over the norm of the image; 0 for what is wrong as it is."""
    record = records["distances"]
    return record.of(attack, name) / np.array(record.notes["size"])


def _attacks(records: Records) -> list[str]:
    return [*records["distances"].notes["attacks"], NEAREST]


def _distance_table(records: Records) -> Table:
    record = records["distances"]
    header = ["network", "clean accuracy", *(f"rho2 by {a}" for a in _attacks(records)), "over plain, nearest"]
    body = []
    for name in record.notes["names"]:
        rhos = [_found(_rho(records, name, a)) for a in _attacks(records)]
        gain = ratio(*_both(records, (name, NEAREST), ("plain", NEAREST)))
        body.append([name, share(record.of("correct", name)), *rhos, str(gain)])
    return header, body


def _found(rho: NDArray[np.float64]) -> str:
    """A cell: the mean over images where the attack found an error, and on how many it found none."""
    lost = ~np.isfinite(rho)
    if lost.all(1).any():
        return "nothing found"
    cell = average([row[~gone].mean() for row, gone in zip(rho, lost, strict=True)])
    return f"{cell} ({lost.sum()} of {lost.size} not found)" if lost.any() else cell


def _both(records: Records, first: tuple[str, str], second: tuple[str, str]) -> tuple[NDArray[np.float64], ...]:
    """Relative distances of two pairs of network and attack, on the images where both found an error in every seed.

    Raises:
        NotRecorded: there is no such image.
    """
    a, b = (_rho(records, name, attack) for name, attack in (first, second))
    found = (np.isfinite(a) & np.isfinite(b)).all(0)
    if not found.any():
        raise NotRecorded(f"{first} and {second} have no image on which both found an error")
    return a[:, found], b[:, found]


def _curve_table(records: Records) -> Table:
    record = records["distances"]
    budgets = record.notes["budgets"]
    body = []
    for name in record.notes["names"]:
        distance = record.of(NEAREST, name)
        body.append([name, *(share(beyond(distance, budget)) for budget in budgets)])
    return ["network", *(f"L2 {b:g}" for b in budgets)], body


def _ladder_table(records: Records) -> Table:
    record = records["ladder"]
    header = ["network", "clean accuracy", f"robust accuracy, {short_threat(record.notes['threat'])}"]
    return header, [
        [n, share(record.of("correct", n)), share(np.isinf(record.of("distance", n)))] for n in record.notes["names"]
    ]


def _fgs_table(records: Records) -> Table:
    record = records["fgs"]
    body = [
        [n, average(record.of("eps", n)), *(share(record.of("survives", n)[:, k]) for k in range(3))]
        for n in record.notes["names"]
    ]
    return ["network", "eps_ref", "FGS at 0.1 eps_ref", "at 0.2", "at 1.0"], body


def _iteration_table(records: Records) -> Table:
    record = records["iterations"]
    most = record.notes["max_iter"]
    header = ["network", "images", *map(str, range(1, most + 1)), "not across", "mean of those across"]
    body = []
    for name in record.notes["names"]:
        for kind, counts in zip(("right", "wrong"), record.of("counts", name).sum(0), strict=True):
            across = counts[:most]
            mean = f"{(across * np.arange(1, most + 1)).sum() / across.sum():.3f}" if across.sum() else ""
            body.append([name, kind, *map(str, counts), mean])
    return header, body


def _convergence_table(records: Records) -> Table:
    record = records["convergence"]
    keys = ("train cross-entropy", "train accuracy", "test cross-entropy", "test accuracy", "gradient_norm", "seconds")
    body = []
    for name in record.notes["names"]:
        for epoch in range(record.of("loss", name).shape[1]):
            watched = ["", "", ""]
            if name == "deep defense":
                watched = [average(record.arrays["watched"][:, epoch, k]) for k in range(3)]
            body.append([name, str(epoch + 1), *(average(record.of(key, name)[:, epoch]) for key in keys), *watched])
    return ["network", "epoch", *keys, "mean rho", "share across", "mean linearisations"], body


def _slower(records: Records) -> Measured:
    """Seconds of tuning with the regulariser over those without, the networks being the same."""
    record = records["convergence"]
    return over_seeds(record.of("seconds", "deep defense").sum(1) / record.of("seconds", "control").sum(1))


def _mean_rho(records: Records, name: str) -> Measured:
    return over_seeds(_both(records, (name, "DeepFool"), (name, "DeepFool"))[0].mean(1))


def _clean(records: Records, name: str) -> NDArray[np.bool_]:
    return records["distances"].of("correct", name)


def _fgs_at(records: Records, name: str, part: int) -> Measured:
    return over_seeds(100 * records["fgs"].of("survives", name)[:, part].mean(1))


_TABLE = "Yan, Guo & Zhang (2018), table 1, MNIST MLP"
_GAINS = tuple(
    Claim(
        f"Deep Defense enlarges rho2 as {attack} sees it: quotient over the plain network",
        _TABLE if attack == "DeepFool" else "Review of Yan, Guo & Zhang (2018): stronger attacks",
        "C" if attack == "DeepFool" else "D",
        Above(1.0),
        lambda r, attack=attack: ratio(*_both(r, ("deep defense", attack), ("plain", attack))),
    )
    for attack in ("DeepFool", "DDN", "FMN", NEAREST)
)
_CELLS: tuple[tuple[str, float, float, str, int], ...] = (
    ("plain", 72.76, 5.0, "0.1", 0),
    ("plain", 29.08, 5.0, "0.2", 1),
    ("plain", 3.31, 3.0, "1.0", 2),
    ("deep defense", 95.04, 2.0, "0.1", 0),
    ("deep defense", 88.93, 3.0, "0.2", 1),
)
_CLAIMS = (
    *_GAINS,
    Claim(
        "The gain is not that of more training: rho2 of Deep Defense over that of the control, nearest of all",
        "Control: plain tuning as long",
        "D",
        Above(1.0),
        lambda r: ratio(*_both(r, ("deep defense", NEAREST), ("control", NEAREST))),
    ),
    Claim(
        "Clean accuracy does not fall by more than 0.3 points",
        _TABLE,
        "C",
        Above(-0.003),
        lambda r: difference(_clean(r, "deep defense"), _clean(r, "plain")),
        reasons={"lenet": "the mean rises; 500 images cannot tell three tenths of a point"},
    ),
    Claim(
        "DeepFool finds errors farther away than DDN does: difference in rho2 on the defended network",
        "AttackBench (2025): mean optimality of DeepFool 0.32 to 0.41, of DDN 0.93",
        "B",
        Above(),
        lambda r: difference(*_both(r, ("deep defense", "DeepFool"), ("deep defense", "DDN"))),
    ),
    Claim(
        "Deep Defense holds more at a fixed L2 budget than the plain network: difference in robust accuracy",
        "Review of Yan, Guo & Zhang (2018): tougher attacks",
        "D",
        Above(),
        lambda r: difference(
            np.isinf(r["ladder"].of("distance", "deep defense")), np.isinf(r["ladder"].of("distance", "plain"))
        ),
    ),
    Claim(
        "The regulariser slows training down: seconds of tuning over those of the control",
        "Review of Yan, Guo & Zhang (2018): slowdown per epoch",
        "D",
        Above(1.0),
        _slower,
        ("smoke", "small", "lenet", "paper"),
    ),
    Claim(
        "rho2 of the plain network, DeepFool",
        _TABLE,
        "C",
        Near(0.111, 0.02),
        lambda r: _mean_rho(r, "plain"),
        ("paper",),
    ),
    Claim(
        "rho2 of Deep Defense, DeepFool",
        _TABLE,
        "C",
        Near(0.225, 0.02),
        lambda r: _mean_rho(r, "deep defense"),
        ("paper",),
    ),
    Claim(
        "Clean accuracy of Deep Defense, %",
        _TABLE,
        "C",
        Near(98.65, 0.3),
        lambda r: over_seeds(100 * _clean(r, "deep defense").mean(1)),
        ("paper",),
    ),
    *(
        Claim(
            f"Accuracy under FGS at {at} eps_ref, {name}, %",
            _TABLE,
            "C",
            Near(value, tolerance),
            lambda r, name=name, part=part: _fgs_at(r, name, part),
            ("paper",),
        )
        for name, value, tolerance, at, part in _CELLS
    ),
)

_SMOKE = Defended(
    setting=Setting("paper_repro.data:digits", "paper_repro.recipes.networks:digits_mlp", 400, 50, (0, 1)),
    plain=Training(epochs=10, batch_size=50, lr=0.1),
    tuning=Training(epochs=2, batch_size=100, lr=5e-3, schedule="cosine"),
    method=DeepDefense(),
    attacks={"DeepFool": DeepFool(20), "DDN": DDN(20), "FMN": FMN(20)},
    budgets=(0.2, 0.5, 1.0),
    ladder=(APGD(10), Square(30)),
    batch=100,
    cost_updates=3,
)

# Beside a value its source: "released code" and "review" were read [A]; numbers of sections are recalled [C]. Values
# without one are ours.
_RELEASED = Training(
    epochs=5,  # released code
    batch_size=100,  # released code
    lr=5e-4,  # released code
    momentum=0.9,  # released code
    weight_decay=5e-4,  # released code
    schedule="step",  # released code: halved after four of five epochs
    step_epochs=4,
    step_gamma=0.5,
)
_SMALL = Defended(
    setting=Setting("paper_repro.data:mnist", "paper_repro.models:deep_defense_mlp", 20_000, 500, (0, 1, 2)),
    plain=Training(epochs=5, batch_size=100, lr=0.1),
    # Departs from paper: ten times the released learning rate under a cosine, for the released one moves little.
    tuning=replace(_RELEASED, lr=5e-3, schedule="cosine"),
    method=DeepDefense(),  # released code: weight 15, c 25, d 5, five linearisations
    attacks={"DeepFool": DeepFool(), "DDN": DDN(100), "FMN": FMN(100), "C&W": CarliniWagner(100, 3)},
    budgets=(0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
    ladder=(APGD(50), TargetedAPGD(3, 30), Square(500)),
    batch=1000,
)

_LENET = replace(
    _SMALL,
    setting=Setting("paper_repro.data:mnist", "paper_repro.models:deep_defense_lenet", 10_000, 500, (0, 1, 2)),
    variants=False,
)

_PAPER = replace(
    _SMALL,
    setting=Setting("paper_repro.data:mnist", "paper_repro.models:deep_defense_mlp", None, 10_000, (0, 1, 2)),
    plain=Training(epochs=20, batch_size=100, lr=0.1),
    tuning=_RELEASED,
    attacks={"DeepFool": DeepFool(), "DDN": DDN(1000), "FMN": FMN(1000), "C&W": CarliniWagner()},
    ladder=(APGD(), TargetedAPGD(), Square()),
    batch=10_000,
)

RECIPE = Recipe(
    name="deep_defense",
    paper="Yan, Guo & Zhang, Deep Defense, NeurIPS 2018",
    scales={"smoke": _SMOKE, "small": _SMALL, "lenet": _LENET, "paper": _PAPER},
    stages={
        "distances": distances,
        "ladder": ladder,
        "fgs": fgs,
        "iterations": iterations,
        "convergence": convergence,
        "cost": cost,
    },
    tables={
        "Distance of the nearest error over the norm of the image": _distance_table,
        "Accuracy by L2 budget, nearest of all attacks": _curve_table,
        "A fixed L2 budget": _ladder_table,
        "The paper's measure, one Linf step": _fgs_table,
        "Linearisations per training image": _iteration_table,
        "Convergence": _convergence_table,
        "Cost, from the plain network": cost_table,
    },
    claims=_CLAIMS,
    deviations=(
        "The gradient of a linearisation is taken by autograd, not by an inverse network; the two agree.",
        "A step keeps its direction and its numerator of one class, and stops per image; the released code mixes two "
        "classes where a prediction changes, and goes on until a batch's slowest image is across.",
        "Relative distances are cut at rho_max = 1; the released code has no bound.",
        "Images are raw pixels; the paper's have their mean subtracted.",
        "At the scales small and lenet the learning rate is ten times the released one, under a cosine.",
        "rho2 is reported by four attacks and their minimum, not by DeepFool alone. Wrong images count as 0; means are "
        "over the images on which the attack finds an error, and comparisons over those where it does on both sides.",
        "FGS of an image counts as an error also where the image itself is wrong.",
        "The mixture of DeepFool training is not published: half of the loss is clean.",
        "CIFAR-10 and ImageNet networks are not run.",
        "Costs of an update are measured from the plain network; the seconds of tuning are in the convergence table.",
    ),
)
