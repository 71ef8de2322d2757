"""Where a stage works: the data, the folders, and networks that are trained once and found again."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.attacks import Attack
from analysis.campaign import attack_campaign
from certify import Execution, InputError, Threat
from certify.campaign.attack_rows import AttackRows
from certify.campaign.results import Results
from certify.campaign.runner import Method as Certifier
from certify.campaign.runner import run as certify_campaign
from certify.campaign.weights import resolve
from paper_repro.data import Data
from paper_repro.models.checkpoint import WEIGHTS
from paper_repro.training import CatastrophicOverfitting, Training, fit
from paper_repro.training.fit import Method


@dataclass(frozen=True, slots=True)
class Setting:
    """What every configuration begins with.

    Args:
        data: package.module:callable, (split) -> Data.
        model: package.module:callable, () -> nn.Module.
        train: Training images, evenly spaced in the official order; None for all.
        test: Test images, likewise.
        seeds: Of the networks; each is trained once per seed.

    Raises:
        InputError: a count < 1, or seeds that are none or not distinct.
    """

    data: str
    model: str
    train: int | None
    test: int
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.test < 1 or (self.train is not None and self.train < 1):
            raise InputError(f"need at least one image of each split; got {self.train!r} and {self.test!r}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"need distinct seeds, at least one; got {self.seeds!r}")


def spaced(data: Data, count: int | None) -> Data:
    """So many examples, evenly spaced in their order; all of them for None.

    Raises:
        InputError: there are not so many.
    """
    if count is None:
        return data
    if count > len(data):
        raise InputError(f"need at most the {len(data)} examples there are; got {count}")
    rows = torch.arange(count) * len(data) // count
    return Data(data.x[rows], data.y[rows], data.id[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """A stage's place of work.

    Attributes:
        config: The recipe's configuration.
        work: Folder of checkpoints and stores, from which a killed stage goes on.
        results: Folder of the records.
        train: The training images.
        test: The test images.
        device: Where to compute.
    """

    config: Any
    work: Path
    results: Path
    train: Data
    test: Data
    device: torch.device

    @classmethod
    def open(cls, config: Any, *, work: Path, results: Path, device: torch.device) -> "Bench":
        """Load the data of a configuration.

        Raises:
            InputError: they are not to be had, or fewer than asked for.
        """
        setting: Setting = config.setting
        load = resolve(setting.data)
        train, test = spaced(load(split="train"), setting.train), spaced(load(split="test"), setting.test)
        return cls(config, work, results, train, test, device)

    @property
    def setting(self) -> Setting:
        """Data, model and seeds."""
        return self.config.setting

    @property
    def x(self) -> Tensor:
        """The test images on the device."""
        return self.test.x.to(self.device)

    @property
    def y(self) -> Tensor:
        """Their labels on the device."""
        return self.test.y.to(self.device)

    def folder(self, name: str, seed: int) -> Path:
        """A network's checkpoint."""
        return self.work / "networks" / f"{name.replace(' ', '_')}-seed{seed}"

    def weights(self, name: str, seed: int) -> Path:
        """A network's weights file."""
        return self.folder(name, seed) / WEIGHTS

    def make(self) -> nn.Module:
        """A network with fresh weights, on the device."""
        return resolve(self.setting.model)().to(self.device)

    def fit(
        self,
        name: str,
        method: Method,
        training: Training,
        seed: int,
        *,
        data: Data | None = None,
        start: Path | None = None,
    ) -> nn.Module:
        """A network trained under that name, or the one that was.

        Args:
            name: Of the network, without the seed.
            method: What one update does.
            training: Epochs and optimiser.
            seed: Of weights, order and noise.
            data: Other training images than the bench's.
            start: Weights to fine-tune.

        Returns: In evaluation mode, on the device.

        Raises:
            InputError: the folder holds a network of other settings.
            Diverged: the loss or a weight is not finite.
        """
        network = self.make()
        with warnings.catch_warnings():
            # The history keeps the warning, and robust accuracy shows what it is about.
            warnings.simplefilter("ignore", CatastrophicOverfitting)
            fit(
                network,
                data or self.train,
                method,
                training,
                seed=seed,
                out=self.folder(name, seed),
                names=(self.setting.model, self.setting.data),
                start=start,
            )
        return network

    def certify(
        self,
        store: str,
        name: str,
        network: nn.Module,
        certifier: Certifier,
        seed: int,
        execution: Execution | None = None,
    ) -> Results:
        """Certificates of the test images by votes, from where a killed campaign stopped.

        Args:
            store: A file in the folder of checkpoints and stores.
            name: Of the network.
            network: In evaluation mode.
            certifier: Of every image.
            seed: Of the votes.
            execution: How the network is evaluated.
        """
        return certify_campaign(
            self.work / store,
            certifier,
            network,
            self.test,
            names=(f"{self.setting.model} {name} seed {seed}", self.setting.data),
            seed=seed,
            execution=execution,
            add=True,
        )

    def attack(
        self, name: str, network: nn.Module, attacks: Sequence[Attack], threat: Threat, seed: int, count: int = 0
    ) -> AttackRows:
        """A ladder of attacks on the test images, from where a killed one stopped.

        Args:
            name: Of the network.
            network: In evaluation mode.
            attacks: In order; each meets what survived the ones before it.
            threat: What they may do.
            seed: Of their random starts.
            count: Of the test images, evenly spaced; 0 for all.
        """
        data = spaced(self.test, count or None)
        results = attack_campaign(
            self.work / "attacks.sqlite",
            attacks,
            network,
            data,
            names=(f"{self.setting.model} {name} seed {seed}", self.setting.data),
            threat=threat,
            seed=seed,
            add=True,
        )
        # Stored rows come in order of id, which is the order of the images here.
        assert np.array_equal(results.rows.example, data.id.numpy())
        return results.rows
