"""What the command lines share."""

from typing import Annotated, Literal

import torch
import typer

from certify.campaign.executor import Executor, Serial
from certify.errors import InputError
from certify.lattice import RoundedGaussian
from certify.noise import Gaussian, Laplace, Noise, Uniform

ExecutorName = Literal["serial", "ray"]
ExecutorOption = Annotated[ExecutorName, typer.Option(help="this process, or workers of a Ray cluster")]
WorkersOption = Annotated[int | None, typer.Option(help="of the executor ray; else as many as there is room for")]
AddressOption = Annotated[str | None, typer.Option(help="of a running Ray cluster; else one on this machine")]


def make_app(text: str | None) -> typer.Typer:
    """A command line whose help begins with `text`, and which always names its commands."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=text)
    app.callback()(lambda: None)  # without one, typer would drop the name of a lone command
    return app


def start(app: typer.Typer) -> None:
    """Run a command; a wrong input, or a file that cannot be used, ends with one line and status 2."""
    try:
        app()
    except (InputError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


def make_executor(name: ExecutorName, workers: int | None, address: str | None) -> Executor:
    """The executor of that name; from here on, a program that uses workers computes with one thread, as they do.

    Raises:
        InputError: ray is not installed, or workers or an address are given where there are none.
    """
    if name == "serial":
        if workers is not None or address is not None:
            raise InputError("--workers and --address are for --executor ray; got serial")
        return Serial()
    from certify.campaign.ray_executor import RayWorkers  # only here: the extra may not be installed

    executor = RayWorkers(workers, address)
    torch.set_num_threads(1)
    return executor


def parse_device(name: str) -> torch.device:
    """A device that this torch can compute on.

    Raises:
        InputError: there is none of that name here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA asserts
        raise InputError(f"need a device that this torch can use, such as cpu or cuda; got {name!r}") from error


def parse_radii(text: str) -> list[float]:
    """Comma-separated radii.

    Raises:
        InputError: a part is no number.
    """
    try:
        return [float(r) for r in text.split(",")]
    except ValueError:
        raise InputError(f"need comma-separated radii, such as 0,0.25,0.5; got {text!r}") from None


NOISES = {"gaussian": Gaussian, "laplace": Laplace, "uniform": Uniform}


ROUNDED = "rounded_gaussian"


def make_noise(name: str, scale: float, dimension: int) -> Noise:
    """The noise of that name, at that scale, for inputs of so many numbers."""
    if name == ROUNDED:
        return RoundedGaussian(scale, dimension)
    if name not in NOISES:
        raise InputError(f"need a noise among {', '.join([*NOISES, ROUNDED])}; got {name!r}")
    return NOISES[name](scale)
