"""Files that mean harm: no pickle runs, no path leads away, no SQL hides in data, and what is refused is named."""

import ast
import io
import json
import pickle
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from analysis.records import read_record
from certify import Certificate, InputError, PerExample
from certify.__main__ import app
from certify.campaign import Published, Store, export_log, read_log
from certify.campaign.tables import rows_of
from certify.campaign.weights import load_weights
from figures.certified_accuracy import certified_accuracy
from figures.spectral_density import read as read_spectrum
from paper_repro.models import import_pickle, save_checkpoint
from paper_repro.models.checkpoint import save_tensors, write_atomically
from paper_repro.training.state import restore_state
from tests.faults.statements import made_of_data
from tests.fuzz.targets import CORPUS, SETTINGS, network, optimizer_of
from tests.networks import digits_linear
from tests.unit.test_logs import GOOD, HEADER

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("certify", "analysis", "paper_repro", "figures")


def sources() -> list[Path]:
    return sorted(p for floor in FLOORS for p in (ROOT / floor).rglob("*.py"))


# --- no pickle runs ------------------------------------------------------------------------------------------------


class Malicious:
    """Whoever opens a pickle of it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """A file that appears where a pickle ran; and the bait must work, or nothing is shown."""
    path = tmp_path / "touched"
    yield path
    assert not path.exists()
    pickle.loads(pickle.dumps(Malicious(path)))
    assert path.exists()


def baits(target: Path) -> dict[str, bytes]:
    """One content, in every form that some reader takes for granted."""
    content, forms = {"weight": Malicious(target)}, {"pickle": pickle.dumps({"weight": Malicious(target)})}
    for name, new in (("torch-zip", True), ("torch-legacy", False)):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=new)
        forms[name] = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, provenance=np.array("{}"), values=np.array([Malicious(target)], dtype=object))
    forms["npz"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.array([Malicious(target)], dtype=object))
    return {**forms, "npy": buffer.getvalue()}


FORMS = ["pickle", "torch-zip", "torch-legacy", "npz", "npy"]
SUFFIXES = [".pt", ".pth", ".pkl", ".bin", ".npz", ".safetensors"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_keywordsas_weights_is_refused_by_name(tmp_path: Path, target: Path, form: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(baits(target)[form])
    refused = rf"weights\{suffix} is not a safetensors file \(.+\)\. A pickle is never opened here"
    with pytest.raises(InputError, match=refused):
        load_weights(digits_linear(), path)
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pickle_on_the_command_line_is_refused_by_name(tmp_path: Path, target: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(baits(target)["torch-zip"])
    model, data = "tests.networks:digits_linear", "paper_repro.data:digits"
    options = ["--model", model, "--weights", str(path), "--data", data, "--store", str(tmp_path / "s.sqlite")]
    for command in (["run", *options, "--scale", "0.25"], ["verify", *options, "--eps", "0.1"]):
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, InputError)
        assert f"{path} is not a safetensors file" in str(result.exception)
    assert not (tmp_path / "s.sqlite").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_among_records_and_logs_is_refused_by_name(tmp_path: Path, target: Path, form: str) -> None:
    path = tmp_path / "record.npz"
    path.write_bytes(baits(target)[form])
    with pytest.raises(InputError, match=r"record\.npz is not a record of this package: "):
        read_record(path)
    with pytest.raises(InputError, match=r"record\.npz does not hold values of a Hessian"):
        read_spectrum(path, ("values",))
    with pytest.raises(InputError, match=r"record\.npz"):
        rows_of([path], [0.0])
    with pytest.raises(InputError, match=r"record\.npz is damaged"):
        Store(path)
    with pytest.raises(InputError, match=r"record\.npz is refused: it is not a pickle of plain tensors"):
        import_pickle(digits_linear(), path, tmp_path / "out")


def test_no_source_opens_a_pickle() -> None:
    """But one place, which reads plain tensors alone."""
    opened = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & set(names), (
                    path
                )
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                owner = ast.unparse(node.func.value)
                if owner == "torch":
                    assert keywords["weights_only"] == "True", path
                    opened.append(path.name)
                if owner in ("np", "numpy"):
                    assert keywords["allow_pickle"] == "False", path
    assert opened == ["checkpoint.py"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(10, dtype=torch.complex64), r"torch\.strided, torch\.complex64 for bias"),
        (torch.zeros(10).to_sparse(), r"torch\.sparse_coo, torch\.float32 for bias"),
        (torch.zeros(10, device="meta"), r"torch\.strided, torch\.float32 for bias"),
    ],
    ids=["complex", "sparse", "meta"],
)
def test_tensors_that_are_not_plain_are_refused(tmp_path: Path, value: torch.Tensor, said: str) -> None:
    torch.save({"weight": torch.zeros(10, 64), "bias": value}, tmp_path / "theirs.pth")
    with pytest.raises(InputError, match=rf"theirs\.pth: need dense real tensors; got {said}$"):
        import_pickle(digits_linear(), tmp_path / "theirs.pth", tmp_path / "ours")


def tensors_file(path: Path, dtype: str, shape: list[int], size: int) -> Path:
    """A safetensors file by hand: what the library would not write."""
    header = json.dumps({"2.bias": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    return path


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("F4", [20], 10), ("F6_E2M3", [4], 3), ("F8_E8M0", [10], 10), ("F32", [2**63, 0], 0), ("F32", [2**62, 4], 0)],
)
def test_types_and_shapes_that_torch_does_not_know_are_refused(
    tmp_path: Path, dtype: str, shape: list[int], size: int
) -> None:
    with pytest.raises(InputError, match=r"w\.safetensors (is not a safetensors file|does not fit the model)"):
        load_weights(digits_linear(), tensors_file(tmp_path / "w.safetensors", dtype, shape, size))


def test_complex_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not fit the model: need real numbers; got complex ones in '2\.bias'$"):
        load_weights(digits_linear(), tensors_file(tmp_path / "w.safetensors", "C64", [10], 80))


def test_a_config_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(digits_linear(), tmp_path, {})
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"config\.json is not a checkpoint's config \(no sha256\): RecursionError"):
        load_weights(digits_linear(), path)


# --- the state of a training run -----------------------------------------------------------------------------------

STATE = CORPUS / "states" / "state.safetensors"


def restored(path: Path) -> tuple[int, dict[str, torch.Tensor]]:
    model, memory = network(), {}
    step, _ = restore_state(path, model, optimizer_of(model), memory, SETTINGS)
    return step, {**model.state_dict(), **memory}


def rewrite(path: Path, **changes: str | None) -> Path:
    """The state of the corpus with other metadata; None leaves an entry out."""
    with safe_open(STATE, "pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, {**file.metadata(), **changes}  # noqa: SIM118
    save_file(tensors, path, {k: v for k, v in metadata.items() if v is not None})
    return path


def test_no_changed_byte_changes_a_resumed_run(tmp_path: Path) -> None:
    """It would go on from other weights, to a checkpoint whose digest is in order."""
    raw, (step, good) = STATE.read_bytes(), restored(STATE)
    path, refused = tmp_path / "state.safetensors", 0
    for at in range(8, len(raw), 7):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        try:
            found = restored(path)
        except InputError:
            refused += 1
            continue
        assert found[0] == step
        assert all(torch.equal(found[1][name], value) for name, value in good.items())
    assert refused > len(range(8, len(raw), 7)) * 0.9, "some bytes pad the header"


def test_a_state_of_an_earlier_version_has_no_digest_and_is_read(tmp_path: Path) -> None:
    step, found = restored(rewrite(tmp_path / "state.safetensors", sha256=None))
    assert step == 7
    assert all(torch.equal(found[name], value) for name, value in restored(STATE)[1].items())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"step": "8"}, "ValueError\\('it is not as it was written'\\)"),
        ({"history": "{}"}, "ValueError\\('it is not as it was written'\\)"),
        ({"sha256": "0"}, "ValueError\\('it is not as it was written'\\)"),
        ({"step": None}, "ValueError\\('it is not as it was written'\\)"),
        ({"sha256": None, "step": None}, "KeyError\\('step'\\)"),
        ({"sha256": None, "step": "one"}, "ValueError"),
        ({"sha256": None, "settings": "[" * 100_000}, "RecursionError"),
        ({"sha256": None, "history": '{"rows": [], "more": 1}'}, "TypeError"),
    ],
)
def test_a_state_that_others_changed_is_refused(tmp_path: Path, changes: dict[str, str | None], why: str) -> None:
    path = rewrite(tmp_path / "state.safetensors", **changes)
    with pytest.raises(InputError, match=rf"state\.safetensors is not the state of a training run \({why}"):
        restored(path)


@pytest.mark.parametrize("name", ["model.2.weight", "optimizer.0.momentum_buffer.x", "optimizer.x.y", "optimizer.0"])
def test_a_state_of_another_network_is_refused(tmp_path: Path, name: str) -> None:
    """A state of the same settings, whose tensors nevertheless do not fit."""
    with safe_open(STATE, "pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    path = tmp_path / "state.safetensors"
    save_file({**tensors, name: torch.zeros(1)}, path, {k: v for k, v in metadata.items() if k != "sha256"})
    if name == "optimizer.0.momentum_buffer.x":  # an entry that the optimiser has no use for
        assert restored(path)[0] == 7
        return
    with pytest.raises(InputError, match=r"state\.safetensors is not the state of a training run \("):
        restored(path)


# --- no path leads away --------------------------------------------------------------------------------------------

ELSEWHERE = ["../escaped", "/tmp/escaped/x", "..\\escaped", "a/../../escaped", "~/escaped"]


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_no_field_of_a_config_is_a_path(tmp_path: Path) -> None:
    """Of a config the digest is read, and nothing else: no field names a file."""
    folder = tmp_path / "inside"
    path = save_checkpoint(digits_linear(), folder, {})
    digest = json.loads((folder / "config.json").read_text())["sha256"]
    other = save_checkpoint(digits_linear(), tmp_path / "outside", {})
    before = tree(tmp_path)
    names = ("weights", "path", "file", "start", "model", "data", "imported_from")
    for where in (*ELSEWHERE, str(other)):
        config = {**dict.fromkeys(names, where), "sha256": digest}
        (folder / "config.json").write_text(json.dumps(config))
        loaded = load_weights(digits_linear(), path)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), load(path), strict=True))
        (folder / "config.json").write_text(json.dumps({**config, "sha256": where}))
        with pytest.raises(InputError, match=r"is not the file that config\.json describes: need sha256 "):
            load_weights(digits_linear(), path)
    assert tree(tmp_path) == before


def load(path: Path) -> list[torch.Tensor]:
    bare = path.with_name("bare") / path.name
    bare.parent.mkdir(exist_ok=True)
    bare.write_bytes(path.read_bytes())
    found = [p.detach() for p in load_weights(digits_linear(), bare).parameters()]
    bare.unlink()
    bare.parent.rmdir()
    return found


def test_no_name_in_a_store_is_a_path(tmp_path: Path) -> None:
    """Names of models, data and logs are shown: what is written lies where the command line says."""
    path, out = tmp_path / "store.sqlite", tmp_path / "out"
    with Store(path, create=True) as store:
        for number, where in enumerate(ELSEWHERE):
            made = Certificate(
                prediction=torch.zeros(2, dtype=torch.int64),
                radius=torch.ones(2, dtype=torch.float64),
                norm="L2",
                subject=where,
                guarantee=PerExample(0.001),
                method=where,
                samples=torch.ones(2, dtype=torch.int64),
            )
            run = store.open_run({"model": f"{where}:{where}", "data": where, "seed": number}, {where: where}, add=True)
            run.append(made, [0, 1], [0, 0], seconds=1.0)
            store.add_log(Published.of(where, [(0, 1, 1, 0.5, True, 1.0)]))
        results = store.results()
    before = tree(tmp_path)
    made_files = certified_accuracy([path], out, [0.0])
    export_log(results[0], tmp_path / "log.tsv")
    assert {p.parent for p in made_files} == {out}
    assert tree(tmp_path) - before == {"log.tsv", "out", *(f"out/{p.name}" for p in made_files)}


def test_a_log_is_named_by_its_file_and_the_name_is_no_path(tmp_path: Path) -> None:
    path = tmp_path / "..%2Fescaped;drop.tsv"
    path.write_text(f"{HEADER}\n{GOOD}\n", encoding="utf-8")
    assert "/" not in read_log(path).name


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
def test_a_link_in_the_folder_is_replaced_and_not_followed(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    folder = tmp_path / "checkpoint"
    for suffix in ("", ".partial"):
        precious.write_text("precious")
        folder.mkdir(exist_ok=True)
        (folder / (name + suffix)).unlink(missing_ok=True)
        (folder / (name + suffix)).symlink_to(precious)
        load_weights(digits_linear(), save_checkpoint(digits_linear(), folder, {}))
        assert precious.read_text() == "precious"
        assert not (folder / name).is_symlink()
        assert sorted(tree(folder)) == ["config.json", "weights.safetensors"]


def test_both_ways_of_writing_take_the_place_of_a_link(tmp_path: Path) -> None:
    for number, write in enumerate(
        (lambda p: write_atomically(p, b"new"), lambda p: save_tensors(p, {"x": torch.zeros(1)}))
    ):
        precious, path = tmp_path / f"precious{number}", tmp_path / f"file{number}"
        precious.write_text("precious")
        path.with_name(path.name + ".partial").symlink_to(precious)
        write(path)
        assert precious.read_text() == "precious"
        assert path.is_file()


def test_members_of_a_record_are_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "record.npz"
    array = io.BytesIO()
    np.save(array, np.zeros(2))
    text = io.BytesIO()
    np.save(text, np.array("{}"))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("provenance.npy", text.getvalue())
        for where in ELSEWHERE:
            file.writestr(f"{where}.npy", array.getvalue())
    before = tree(tmp_path)
    arrays, _ = read_record(path)
    assert len(arrays) == len(ELSEWHERE)
    assert tree(tmp_path) == before


# --- SQL takes data as data ----------------------------------------------------------------------------------------


def test_no_statement_is_made_of_data() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in sources()}
    using = [path for path, text in texts.items() if "sqlite3" in text or "._db" in text]
    assert {"store.py", "salvage.py", "attack_rows.py"} <= {p.name for p in using}
    assert [line for path in using for line in made_of_data(path)] == []


@pytest.mark.parametrize(
    "statement",
    [
        'db.execute(f"SELECT * FROM log WHERE name = {name!r}")',
        "db.execute(\"SELECT * FROM log WHERE name = '%s'\" % name)",
        "db.execute(\"SELECT * FROM log WHERE name = '{}'\".format(name))",
        'db.execute("SELECT * FROM log WHERE name = \'" + name + "\'")',
        'query = "SELECT 1"\n    query += name\n    query = query + name\n    db.execute(query)',
        "db.executemany(name, [])",
        'db.executescript(f"DROP TABLE {name}")',
    ],
)
def test_the_rule_on_statements_sees_a_culprit(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "culprit.py"
    path.write_text(f"def find(db, name):\n    {statement}\n")
    assert len(made_of_data(path)) == 1


def test_a_store_that_others_made_has_no_say_in_what_is_run(tmp_path: Path) -> None:
    """Functions in a schema of others are not called, and what would act on its own is refused."""
    path = tmp_path / "store.sqlite"
    Store(path, create=True).__exit__(None, None, None)
    database = sqlite3.connect(path)
    database.execute("CREATE VIEW everything AS SELECT load_extension('/tmp/evil.so')")
    database.close()
    with pytest.raises(InputError, match=r"store\.sqlite: need tables alone, .*; got 'everything'$"):
        Store(path)
