"""Models and attacks of other libraries, and ours for them.

A network of another library becomes a plain module and the box of its inputs; ours becomes theirs. Their attacks run
under our rules: what they return is classified again, its distance is measured again, and their randomness comes from
the stream that they are given. Models of RobustBench need nothing: they are modules on [0, 1].
"""

import importlib
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.attacks.attacked import Attacked, Queries
from analysis.attacks.pgd import look, remaining
from certify.errors import InputError
from certify.layers import Normalize
from certify.rng import Stream
from certify.threat import Box, Norm, Threat
from certify.voting import check_model, device_of

_NORMS: dict[float, Norm] = {0.0: "L0", 1.0: "L1", 2.0: "L2", float("inf"): "Linf"}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"this needs {name.partition('.')[0]}: pip install 'robust-radius[interop]' ({error})"
        ) from error


class Flip(nn.Module):
    """The input with one axis reversed, such as RGB as BGR.

    Args:
        axis: Counted with the batch, or from the end.
    """

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Reverse it."""
        return x.flip(self.axis)


def from_foolbox(model: Any) -> tuple[nn.Module, Box]:
    """The network of a `foolbox.PyTorchModel`, preceded by its preprocessing, and the bounds of its inputs.

    Args:
        model: The caller's; the module inside is shared, not copied.

    Returns: A module on the model's own units, and the box that a `Threat` on it needs.

    Raises:
        InputError: foolbox is not installed; it is another kind of model; or mean and std are not per channel.
    """
    if not isinstance(model, _package("foolbox").PyTorchModel):
        raise InputError(f"need a foolbox.PyTorchModel; got {type(model).__name__}")
    network = inspect.getclosurevars(model._model).nonlocals["model"]
    mean, std, axis = model._preprocess_args
    parts: list[nn.Module] = [] if axis is None else [Flip(axis)]
    if mean is not None or std is not None:
        parts.append(_normalizer(0.0 if mean is None else mean.numpy(), 1.0 if std is None else std.numpy()))
    return _preceded(parts, network), (float(model.bounds.lower), float(model.bounds.upper))


def to_foolbox(model: nn.Module, box: tuple[float, float] = (0.0, 1.0)) -> Any:
    """A module as a `foolbox.PyTorchModel`, on the device where it is; a `SmoothedClassifier` will do.

    Args:
        model: (n, ...) -> (n, classes) logits, in evaluation mode; it normalises its inputs itself.
        box: Where inputs lie.

    Raises:
        InputError: foolbox is not installed, or the model is in training mode.
    """
    check_model(model)
    return _package("foolbox").PyTorchModel(model, bounds=box, device=device_of(model))


def from_art(classifier: Any) -> tuple[nn.Module, Box]:
    """The network of an ART `PyTorchClassifier`, preceded by its preprocessing, and its clip values.

    Args:
        classifier: The caller's; the module inside is shared, not copied.

    Returns: A module on the classifier's own units, and the box that a `Threat` on it needs; None without clip values.

    Raises:
        InputError: ART is not installed; it is another kind of classifier; or it holds what a module of layers cannot:
            defences, channels last, preprocessing that is not per channel, or clip values that differ between features.
    """
    art = _package("art.estimators.classification")
    if not isinstance(classifier, art.PyTorchClassifier):
        raise InputError(f"need an ART PyTorchClassifier; got {type(classifier).__name__}")
    if classifier.preprocessing_defences or classifier.postprocessing_defences:
        raise InputError("need a classifier without preprocessing or postprocessing defences: attack these with ART")
    if not classifier.channels_first:
        raise InputError("need a classifier with channels first; got channels_first = False")
    parts: list[nn.Module] = []
    scale = classifier.preprocessing
    if scale is not None:
        if not (hasattr(scale, "mean") and hasattr(scale, "std")):
            raise InputError(f"need preprocessing by mean and std; got {type(scale).__name__}")
        if np.any(scale.mean != 0) or np.any(scale.std != 1):
            # ART takes one axis to be the channels'.
            parts.append(_normalizer(*(v[:, None, None] if np.ndim(v) == 1 else v for v in (scale.mean, scale.std))))
    box: Box = None
    if classifier.clip_values is not None:
        ends = [np.unique(end) for end in classifier.clip_values]
        if any(len(end) != 1 for end in ends):
            raise InputError("need clip values that are the same for every feature")
        box = float(ends[0][0]), float(ends[1][0])
    return _preceded(parts, classifier.model), box


def to_art(model: nn.Module, shape: tuple[int, ...], classes: int, box: Box = (0.0, 1.0)) -> Any:
    """A module as an ART `PyTorchClassifier`, on the device where it is; a `SmoothedClassifier` will do.

    Args:
        model: (n, ...) -> (n, classes) logits, in evaluation mode; it normalises its inputs itself.
        shape: Of one input, channels first.
        classes: Number of logits.
        box: Where inputs lie: ART's clip values; None for anywhere.

    Raises:
        InputError: ART is not installed, or the model is in training mode.
    """
    check_model(model)
    return _package("art.estimators.classification").PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=classes,
        channels_first=True,
        clip_values=box,
        device_type="gpu" if device_of(model).type == "cuda" else "cpu",
    )


def _preceded(parts: list[nn.Module], network: nn.Module) -> nn.Module:
    """The network behind what comes before it, in the mode and on the device that it is in."""
    if not parts:
        return network
    whole = nn.Sequential(*(part.to(device_of(network)).train(network.training) for part in parts), network)
    whole.training = network.training
    return whole


def _normalizer(mean: Any, std: Any) -> Normalize:
    """Preprocessing by a mean and a std of one value, or of shape (channels, 1, 1).

    Raises:
        InputError: they have another shape, or a std is not positive.
    """
    for value in (mean, std):
        if np.size(value) != 1 and (np.ndim(value) != 3 or np.shape(value)[0] != np.size(value)):
            raise InputError(f"need a mean and a std of one value, or (channels, 1, 1); got shape {np.shape(value)}")
    mean, std = np.broadcast_arrays(np.ravel(mean), np.ravel(std))
    if (std <= 0).any():
        raise InputError(f"need std > 0; got {std.min():g}")
    return Normalize(mean.tolist(), std.tolist())


class _Counted(nn.Module):
    """A model that counts the inputs it classifies, and those whose gradient is taken."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        logits = self.model(x)
        self.forwards += len(x)
        if logits.requires_grad and x.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@contextmanager
def _randomness(rng: Stream, device: torch.device) -> Iterator[None]:
    """Global random states that start where the stream does, and are put back."""
    seed, numpy_state, state = int.from_bytes(rng.bits(4), "big"), np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - what these libraries draw from
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(state)


def _run(
    method: object,
    queries: Queries,
    rng: Stream,
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor],
) -> Attacked:
    """Let an attack loose on what is still classified correctly, and judge what it returns."""
    look(queries)
    live = remaining(queries, True)
    if live.numel():
        counted = _Counted(queries.model)
        with _randomness(rng, queries.x.device):
            found = attack(counted, queries.x[live], queries.y[live])
        with torch.no_grad():
            queries.logits(found.to(queries.x), live)
        for total, count in ((queries.forwards, counted.forwards), (queries.backwards, counted.backwards)):
            total[live.cpu()] += -(-count // len(live))
    return queries.result(method)


@dataclass(frozen=True, slots=True)
class FoolboxAttack:
    """An attack of foolbox as one of ours.

    Args:
        attack: Such as `foolbox.attacks.LinfPGD(steps=40)`; its repr is the provenance.
    """

    attack: Any

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for misclassified inputs within the threat.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) float32 inputs in the box.
            y: (n,) labels.
            threat: In the attack's own norm, with a box.
            rng: What the attack draws; examples attacked together share it.

        Returns: Attacked. Costs count every query; the attack's own are shared evenly among the examples it was given,
            those classified correctly as they are.

        Raises:
            InputError: foolbox is not installed, training mode, no box, another norm, or inputs that do not fit.
        """
        foolbox, queries, box = _package("foolbox"), Queries(model, x, y, threat), threat.box
        if box is None:
            raise InputError("need a threat with a box: foolbox has no inputs without bounds")
        _check_norm(getattr(getattr(self.attack, "distance", None), "p", None), threat)

        def attack(counted: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return self.attack(to_foolbox(counted, box), x, foolbox.criteria.Misclassification(y), epsilons=threat.eps)[
                1
            ]

        return _run(self, queries, rng, attack)


@dataclass(frozen=True, slots=True)
class ArtAttack:
    """An evasion attack of the Adversarial Robustness Toolbox as one of ours.

    Args:
        make: (classifier, threat) -> attack, such as `lambda c, t: ProjectedGradientDescent(c, eps=t.eps)`; no part of
            the provenance.
        name: The provenance: the attack and its settings.

    Raises:
        InputError: the name is empty.
    """

    make: Callable[[Any, Threat], Any] = field(repr=False, compare=False)
    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError(f"need a name for the attack, its provenance; got {self.name!r}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, rng: Stream) -> Attacked:
        """Look for misclassified inputs within the threat.

        Args:
            model: (n, ...) -> (n, classes) logits, in evaluation mode.
            x: (n, ...) float32 inputs in the box.
            y: (n,) labels.
            threat: In the attack's own norm, where it has one.
            rng: What the attack draws; examples attacked together share it.

        Returns: Attacked. Costs count every query; the attack's own are shared evenly among the examples it was given,
            those classified correctly as they are.

        Raises:
            InputError: ART is not installed, training mode, another norm, or inputs that do not fit.
        """
        queries = Queries(model, x, y, threat)
        with torch.no_grad():
            classes = model(x[:1]).shape[1]

        def attack(counted: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            made = self.make(to_art(counted, tuple(x.shape[1:]), classes, threat.box), threat)
            _check_norm(getattr(made, "norm", None), threat)
            return torch.from_numpy(np.asarray(made.generate(x=x.cpu().numpy(), y=y.cpu().numpy())))

        return _run(self, queries, rng, attack)


def _check_norm(order: Any, threat: Threat) -> None:
    """Refuse an attack in one norm under a threat in another: its budget would mean something else."""
    if order is not None and _NORMS.get(float(order)) != threat.norm:
        raise InputError(f"need a threat in the attack's norm, order {order}; got {threat.norm}")
