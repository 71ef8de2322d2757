"""python -m paper_repro train."""

from pathlib import Path
from typing import Annotated

import typer

from certify import Gaussian, InputError, Laplace, Uniform
from certify.campaign.cli import make_app, parse_device, start
from certify.campaign.weights import resolve
from paper_repro.training import Erm, NoiseAugmentation, SplitAugmentation, Training, fit
from paper_repro.training.fit import Method, OptimizerName, ScheduleName

app = make_app(__doc__)
_DEFAULT = Training(epochs=1)


def make_method(name: str, scale: float, levels: int = 255) -> Method:
    """The training method of that name."""
    noises = {"gaussian": Gaussian, "laplace": Laplace, "uniform": Uniform}
    if name == "erm":
        return Erm()
    if name == "split":
        return SplitAugmentation(scale, levels)
    if name not in noises:
        raise InputError(f"need a method among erm, split, {', '.join(noises)}; got {name!r}")
    return NoiseAugmentation(noises[name](scale))


@app.command()
def train(
    method: Annotated[str, typer.Option(help="erm, or augmentation by noise: gaussian, laplace, uniform or split")],
    data: Annotated[str, typer.Option(help="package.module:callable, (split) -> Data")],
    model: Annotated[str, typer.Option(help="package.module:callable, () -> nn.Module")],
    epochs: Annotated[int, typer.Option(help="passes over the training set")],
    out: Annotated[Path, typer.Option(help="folder of the checkpoint; a killed run resumes from it")],
    scale: Annotated[float, typer.Option(help="scale of the noise, in input units (sigma for gaussian)")] = 0.5,
    levels: Annotated[int, typer.Option(help="for split: inputs are multiples of 1 / levels")] = 255,
    seed: Annotated[int, typer.Option(help="determines weights, order and noise")] = 0,
    batch_size: Annotated[int, typer.Option(help="examples per step")] = _DEFAULT.batch_size,
    optimizer: Annotated[OptimizerName, typer.Option(help="sgd or adam")] = _DEFAULT.optimizer,
    lr: Annotated[float, typer.Option(help="peak learning rate")] = _DEFAULT.lr,
    momentum: Annotated[float, typer.Option(help="for sgd")] = _DEFAULT.momentum,
    weight_decay: Annotated[float, typer.Option(help="L2 penalty")] = _DEFAULT.weight_decay,
    schedule: Annotated[ScheduleName, typer.Option(help="of the learning rate")] = _DEFAULT.schedule,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Train a network; the same command resumes a killed run bit for bit, and does nothing on a finished one."""
    training = Training(
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        schedule=schedule,
    )
    network = resolve(model)().to(parse_device(device))
    examples = resolve(data)(split="train")
    chosen = make_method(method, scale, levels)
    weights = fit(network, examples, chosen, training, seed=seed, out=out, names=(model, data))
    typer.echo(f"trained: {weights}", err=True)


if __name__ == "__main__":
    start(app)
