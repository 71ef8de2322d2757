"""Print every dependency at its lower bound, to try a release with the oldest packages that it says it takes.

In a fresh environment: `pip install $(python -m tests.lower_bounds)`, `pip install --no-deps -e .`, then the tests.
Names given behind the command are left out, such as `torch` where no build of that age fits the machine.
"""

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lower_bounds(requirements: list[str]) -> dict[str, str]:
    """The lower bound of each requirement, by name; each must have one."""
    parts = [requirement.partition(";")[0].partition(">=") for requirement in requirements]
    missing = [name for name, sign, version in parts if not (sign and version)]
    if missing:
        raise ValueError(f"need a lower bound for each dependency; got none for {', '.join(missing)}")
    return {name.partition("[")[0].strip(): version.partition(",")[0].strip() for name, _, version in parts}


def main(left_out: list[str]) -> None:
    """Print them on one line."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    bounds = lower_bounds(project["dependencies"])
    print(*(f"{name}=={version}" for name, version in bounds.items() if name not in left_out))


if __name__ == "__main__":
    main(sys.argv[1:])
