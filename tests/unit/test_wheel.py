"""The wheel ships the four packages and nothing else, and works from another folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"certify", "analysis", "paper_repro", "figures"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.splitlines():  # a copy, because a build leaves folders behind
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == PACKAGES
    assert {"certify/py.typed", "analysis/py.typed", "figures/report.html.j2"} <= set(names)
    metadata = next(n for n in names if n.endswith("METADATA"))
    lines = zipfile.ZipFile(wheel).read(metadata).decode().lower().splitlines()
    requirements = [line for line in lines if line.startswith("requires-dist:")]
    assert any("torch" in line for line in requirements)
    assert not any("lirpa" in line for line in requirements)  # its metadata asks for a torch of 2022


def test_imports_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import certify, analysis.attacks, paper_repro.data, figures.certified_accuracy; "
        "from certify import Gaussian; print(certify.__file__, Gaussian(1.0).radius(0.9))"
    )
    # -I keeps this checkout, and its editable install's working folder, out of the way.
    path = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
    run = subprocess.run(
        [sys.executable, "-I", "-c", path + code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    file, radius = run.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert radius.startswith("1.28155156")
