"""Checkpoints: what was saved comes back bit for bit, what was changed is refused, and no pickle ever runs."""

import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from certify import InputError
from certify.campaign.weights import file_digest, load_weights, model_digest
from certify.layers import Normalize
from paper_repro.models import import_pickle, save_checkpoint
from paper_repro.models.checkpoint import save_tensors
from tests.networks import digits_linear, digits_mlp


class BatchNormed(nn.Sequential):
    """Buffers of other types than the weights: a float64 mean, a 0-dimensional counter."""

    def __init__(self) -> None:
        super().__init__(Normalize([0.1, 0.2], [0.3, 0.4]), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3).double())


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The weights file of a saved digits network."""
    return save_checkpoint(digits_mlp(), tmp_path / "made" / "where" / "missing", {"seed": 3})


# --- save and load ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [digits_mlp, BatchNormed])
def test_round_trip_is_bit_for_bit(tmp_path: Path, make: Any) -> None:
    model = make()
    with torch.no_grad():  # values that a decimal text would not keep
        next(model.parameters()).view(-1)[:3] = torch.tensor([1 / 3, 1e-45, -0.0])
    path = save_checkpoint(model, tmp_path, {"method": "Erm()"})
    other = make().train()
    loaded = load_weights(other, path)
    assert loaded is other
    assert not loaded.training
    assert equal_states(loaded, model)
    assert torch.signbit(next(loaded.parameters()).view(-1)[2])
    assert model_digest(loaded) == model_digest(model)
    assert json.loads((tmp_path / "config.json").read_text()) == {"method": "Erm()", "sha256": file_digest(path)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]


def test_the_same_weights_give_the_same_file(tmp_path: Path) -> None:
    model = digits_mlp()
    first, second = (save_checkpoint(model, tmp_path / name, {}) for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_a_digest_is_about_architecture_and_every_value() -> None:
    model = digits_mlp()
    digest = model_digest(model)
    assert model_digest(model.eval()) == digest
    changed = digits_mlp()
    changed.load_state_dict(model.state_dict())
    assert model_digest(changed) == digest
    with torch.no_grad():
        changed[-1].bias[0] = torch.nextafter(changed[-1].bias[0], torch.tensor(1.0))
    assert model_digest(changed) != digest
    # The same parameters under another activation are another network.
    other = nn.Sequential(*(nn.Tanh() if isinstance(m, nn.ReLU) else m for m in model))
    assert model_digest(other) != digest


def test_no_config_means_nothing_to_check(checkpoint: Path) -> None:
    (checkpoint.parent / "config.json").unlink()
    load_weights(digits_mlp(), checkpoint)


@pytest.mark.parametrize("position", [8, 400, -1], ids=["header", "body", "last"])
def test_one_changed_byte_is_refused(checkpoint: Path, position: int) -> None:
    raw = bytearray(checkpoint.read_bytes())
    raw[position] ^= 1
    checkpoint.write_bytes(raw)
    with pytest.raises(
        InputError, match=r"is not the file that config\.json describes: need sha256 \w{64}; got \w{64}$"
    ):
        load_weights(digits_mlp(), checkpoint)


def test_a_changed_digest_in_the_config_is_refused(checkpoint: Path) -> None:
    config = checkpoint.parent / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sha256": "0" * 64}))
    with pytest.raises(InputError, match=rf"describes: need sha256 {'0' * 64}; got {file_digest(checkpoint)}"):
        load_weights(digits_mlp(), checkpoint)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b'"sha256"', b"\xff\xfe"])
def test_a_config_without_digest_is_refused(checkpoint: Path, content: bytes) -> None:
    """Else whoever replaces the weights would only have to damage the config."""
    (checkpoint.parent / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json is not a checkpoint's config \(no sha256\)"):
        load_weights(digits_mlp(), checkpoint)


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^need a weights file; no file at .*nothing\.safetensors$"):
        load_weights(digits_mlp(), tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match=r"^need a weights file; no file at"):
        load_weights(digits_mlp(), tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"rubbish", bytes(100), b"\xff" * 100, pickle.dumps({"weight": 1})],
    ids=["empty", "rubbish", "zeros", "ones", "pickle"],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"weights\.safetensors is not a safetensors file \(.+\)\. A pickle is never open"
    ):
        load_weights(digits_mlp(), path)


def test_truncated_weights_are_refused(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    (checkpoint.parent / "config.json").unlink()
    with pytest.raises(InputError, match=r"is not a safetensors file"):
        load_weights(digits_mlp(), checkpoint)


def test_another_architecture_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)does not fit the model: .*Unexpected key\(s\) in state_dict"):
        load_weights(digits_linear(), checkpoint)
    wrong_shape = {**digits_linear().state_dict(), "2.weight": torch.zeros(9, 64)}
    path = tmp_path / "w.safetensors"
    save_file(wrong_shape, path)
    with pytest.raises(InputError, match=r"(?s)does not fit the model: .*size mismatch for 2\.weight"):
        load_weights(digits_linear(), path)


def test_a_kill_while_saving_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"x": torch.zeros(3)})
    before = path.read_bytes()

    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(path, {"x": torch.ones(3)})
    assert path.read_bytes() == before


# --- pickles ------------------------------------------------------------------------------------------------------


class Malicious:
    """A pickle of it touches a file when it is opened as pickles usually are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def malicious(path: Path, target: Path, form: str) -> None:
    content = {"state_dict": [OrderedDict(weight=Malicious(target))]}
    if form == "plain":
        path.write_bytes(pickle.dumps(content, protocol=2))  # the one that torch reads without a remark
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")


@pytest.mark.parametrize("form", ["plain", "zip", "legacy"])
def test_a_malicious_pickle_never_runs(tmp_path: Path, form: str) -> None:
    path, target = tmp_path / "weights.pth", tmp_path / "touched"
    malicious(path, target, form)
    with pytest.raises(
        InputError, match=r"weights\.pth is refused: it is not a pickle of plain tensors \(Weights only"
    ):
        import_pickle(digits_linear(), path, tmp_path / "out")
    with pytest.raises(InputError, match=r"weights\.pth is not a safetensors file"):
        load_weights(digits_linear(), path)
    assert not target.exists()
    assert not (tmp_path / "out").exists()
    # The bait works: without the safeguards the file would be there.
    torch.load(path, weights_only=False) if form != "plain" else pickle.loads(path.read_bytes())
    assert target.exists()


def renamed(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters as others would have named them."""
    return OrderedDict((f"module.layer{i}.{k}", v) for i, (k, v) in enumerate(dict(model.named_parameters()).items()))


@pytest.mark.parametrize("wrapped", [False, True], ids=["state dict", "list of one under state_dict"])
@pytest.mark.parametrize("new", [False, True], ids=["legacy", "zip"])
def test_a_good_pickle_is_converted(tmp_path: Path, wrapped: bool, new: bool) -> None:
    theirs = digits_mlp()
    state = renamed(theirs)
    pickled = tmp_path / "theirs.pth"
    torch.save({"state_dict": [state]} if wrapped else state, pickled, _use_new_zipfile_serialization=new)
    path = import_pickle(digits_mlp(), pickled, tmp_path / "ours")
    loaded = load_weights(digits_mlp(), path)
    assert equal_states(loaded, theirs)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config == {"imported_from": "theirs.pth", "sha256": file_digest(path)}


def test_the_normaliser_keeps_its_own_values(tmp_path: Path) -> None:
    """A pickle of others has no normaliser; its batch-norm statistics are nevertheless taken over."""
    theirs = BatchNormed()
    theirs[2].running_mean.fill_(7)
    state = OrderedDict((k, v) for k, v in theirs.state_dict().items() if k not in ("0.mean", "0.std"))
    torch.save(state, tmp_path / "theirs.pth")
    ours = load_weights(BatchNormed(), import_pickle(BatchNormed(), tmp_path / "theirs.pth", tmp_path / "ours"))
    assert equal_states(ours, theirs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"need a state dict of tensors; got list"),
        (torch.zeros(3), r"need a state dict of tensors; got Tensor"),
        ({"weight": 1.0}, r"need a state dict of tensors; got dict"),
        ({"state_dict": [{}, {}]}, r"need a state dict of tensors; got list"),
        ({"weight": torch.zeros(10, 64)}, r"need 2 tensors for this model; got 1"),
        ({}, r"need 2 tensors for this model; got 0"),
        (
            {"fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(9)},
            r"need shape \(10,\) for 2\.bias; got fc\.bias \(9,\)",
        ),
        (
            {"fc.bias": torch.zeros(10), "fc.weight": torch.zeros(10, 64)},
            r"need shape \(10, 64\) for 2\.weight; got fc\.bias \(10,\)",
        ),
    ],
    ids=["list", "tensor", "number", "list of two", "too few", "none", "shape", "order"],
)
def test_a_pickle_that_does_not_fit_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "theirs.pth")
    with pytest.raises(InputError, match=rf"theirs\.pth: {message}$"):
        import_pickle(digits_linear(), tmp_path / "theirs.pth", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def damage(raw: bytes, seed: int) -> bytes:
    """Three changed bytes, and for every third seed an end that is missing."""
    generator = torch.Generator().manual_seed(seed)
    changed = bytearray(raw)
    for _ in range(3):
        position, value = torch.randint(len(raw), (), generator=generator), torch.randint(256, (), generator=generator)
        changed[int(position)] = int(value)
    return bytes(changed[: len(raw) // 2] if seed % 3 == 0 else changed)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's own remark on a damaged byte
@pytest.mark.parametrize("new", [False, True], ids=["legacy", "zip"])
def test_a_damaged_pickle_is_refused_whatever_breaks_in_it(tmp_path: Path, new: bool) -> None:
    """torch's reader answers damage with a dozen kinds of exception; a user gets one."""
    path = tmp_path / "theirs.pth"
    torch.save(renamed(digits_linear()), path, _use_new_zipfile_serialization=new)
    raw, refused = path.read_bytes(), 0
    for seed in range(60):
        path.write_bytes(damage(raw, seed))
        try:
            import_pickle(digits_linear(), path, tmp_path / "ours")
        except InputError:
            refused += 1
    assert refused >= 20, "every third pickle is cut in half; damage among the values may go unseen"


def test_a_missing_pickle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.pth is refused: .*No such file"):
        import_pickle(digits_linear(), tmp_path / "nothing.pth", tmp_path / "ours")
