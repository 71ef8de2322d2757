"""auto_LiRPA, imported beside a torch and a numpy that it was not written for.

Version 0.3, the newest on the package index, uses names that numpy and torch have dropped since, and two small packages
of which it needs nothing here. Each is put in place only where it is missing; where auto_LiRPA imports as it is,
nothing here has an effect.
"""

import importlib
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

INSTALL = (
    "verification by linear bounds needs auto_LiRPA, which is not installed: pip install --no-deps auto-LiRPA "
    "(without --no-deps it asks for a torch of 2022)"
)

ABSENT: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "numpy.lib.arraysetops": {"isin": np.isin},
    "tqdm": {"tqdm": iter},
    # It would make this folder and never write to it.
    "appdirs": {"user_data_dir": lambda name: "."},
}
"""Modules that auto_LiRPA imports, each with the one name it takes from it."""


@contextmanager
def stand_ins() -> Iterator[None]:
    """A module of its own for each of `ABSENT` that is not there, for as long as the import lasts."""
    made = []
    for name, content in ABSENT.items():
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__dict__.update(content)
            made.append(name)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def repair_torch() -> None:
    """Put back what torch dropped and tracing a network needs, where it is missing."""
    symbolic_helper = importlib.import_module("torch.onnx.symbolic_helper")
    if not hasattr(symbolic_helper, "_set_opset_version"):
        setattr(symbolic_helper, "_set_opset_version", _set_opset_version)  # noqa: B010
    if not hasattr(torch._C.Node, "__getitem__"):
        setattr(torch._C.Node, "__getitem__", _attribute)  # noqa: B010


def _set_opset_version(opset: int) -> None:
    try:
        module = importlib.import_module("torch.onnx._internal.torchscript_exporter._globals")
    except ModuleNotFoundError:  # where it lay until torch 2.8
        module = importlib.import_module("torch.onnx._globals")
    module.GLOBALS.export_onnx_opset_version = opset


def _attribute(node: Any, name: str) -> Any:
    return importlib.import_module("torch.onnx.symbolic_helper")._node_get(node, name)


def repair_members(module: Any) -> None:
    """Let a module's own listing of its parameters take the argument that torch passes since version 2.0."""
    inner = module._named_members
    if "remove_duplicate" in inspect.signature(inner).parameters:
        return

    def _named_members(
        self: Any, get_members_fn: Any, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Any:
        return inner(self, get_members_fn, prefix, recurse)  # it never lists one twice

    module._named_members = _named_members


def auto_lirpa() -> ModuleType:
    """The package, repaired where that is due.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    if (present := sys.modules.get("auto_LiRPA")) is not None:
        return present
    repair_torch()
    handlers, depth = logging.root.handlers[:], sys.getrecursionlimit()
    # Its import sets the process's warning filters: `record` drops what they let through, and the exit puts them back.
    with warnings.catch_warnings(record=True), stand_ins():
        try:
            package = importlib.import_module("auto_LiRPA")
        except ModuleNotFoundError as error:
            if error.name != "auto_LiRPA":
                raise
            raise ImportError(INSTALL) from error
    logging.root.handlers[:] = handlers
    # Its import allows a million frames, more than the stack holds: a nested file would crash Python's JSON reader.
    sys.setrecursionlimit(depth)
    package.utils.logger.disabled = True  # what it would print, callers raise
    repair_members(package.BoundedModule)
    return package
