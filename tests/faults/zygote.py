"""Campaigns in processes that are killed or held short, forked from this one, which has loaded everything once.

Reads one request per line, as JSON, and answers it with one line: how each of the processes ended.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from certify import Gaussian, Smoothing
from certify.campaign import Results, Store, run
from paper_repro.data import Data, digits
from tests.networks import digits_linear

EXAMPLES, BATCH = 120, 4
NAMES = ("tests.networks:digits_linear", "paper_repro.data:digits test")
METHOD = Smoothing(Gaussian(0.25), n0=10, n=50, alpha=0.01)


def network() -> nn.Module:
    """Untrained, and the same in every process."""
    torch.manual_seed(0)
    return digits_linear().eval()


def campaign(store: Path, model: nn.Module, data: Data) -> Results:
    return run(store, METHOD, model, data, names=NAMES, indices=f":{EXAMPLES}", seed=7, batch=BATCH)


def obey_permissions() -> None:
    """Give up what lets the superuser write where nobody may; for anyone else this changes nothing."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def live(request: dict[str, Any], model: nn.Module, data: Data) -> str:
    """What one process does, and what it says of it."""
    try:
        if request.get("largest_file"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file"],) * 2)
        if request.get("unprivileged"):
            obey_permissions()
        store = Path(request["store"])
        if request.get("read"):
            with Store(store) as file:
                return f"{len(file.results()[0].example)} rows"
        return f"{len(campaign(store, model, data).example)} rows"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def answer(request: dict[str, Any], model: nn.Module, data: Data) -> list[dict[str, Any]]:
    """Fork as many processes as asked for, kill them where asked to, and wait for all."""
    children = []
    for _ in range(request.get("processes", 1)):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, live(request, model, data).encode())
            os._exit(0)
        os.close(writing)
        children.append((child, reading, time.perf_counter()))
    if request.get("kill_after") is not None:
        time.sleep(request["kill_after"])
        for child, *_ in children:
            os.kill(child, signal.SIGKILL)
    ends = []
    for child, reading, started in children:
        _, status = os.waitpid(child, 0)
        with os.fdopen(reading) as said:
            ends.append({"signal": os.WTERMSIG(status), "said": said.read(), "seconds": time.perf_counter() - started})
    return ends


def serve() -> None:
    torch.set_num_threads(1)  # a fork has no other threads to wait for
    model, data = network(), digits("test")
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), model, data)), flush=True)


if __name__ == "__main__":
    serve()
