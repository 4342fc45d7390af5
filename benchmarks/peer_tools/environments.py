"""The peers' virtual environments: each has the versions of requirements-NAME.txt and a torch without CUDA."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parent.parent / "constraints.txt"
CPU_ONLY = "import importlib.util as u; assert not u.find_spec('torch') or not __import__('torch').version.cuda"


def requirements(tool: str) -> Path:
    """Return the file with a tool's versions."""
    return HERE / f"requirements-{tool}.txt"


def python_of(folder: Path | None, tool: str) -> Path | None:
    """Return the interpreter of a tool's environment, or None if there is none."""
    path = None if folder is None else folder / tool / "bin" / "python"
    return path if path is not None and path.exists() else None


def constraints_for(wanted: str, constraints: str) -> str:
    """Return the pins of `constraints` for packages that `wanted`, a requirements file, does not pin itself."""
    own = {_package(line) for line in wanted.splitlines() if "==" in line}
    return "\n".join(line for line in constraints.splitlines() if "==" in line and _package(line) not in own)


def _package(line: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[=\s\[]", line.strip(), maxsplit=1)[0]).lower()


def install(folder: Path, tools: Iterable[str]) -> dict[str, str]:
    """Make the environments of tools in a folder. Returns what went wrong, by tool; a broken environment is renamed."""
    failures = {}
    for tool in tools:
        print(f"{tool}: installing {requirements(tool).name}", flush=True)
        try:
            make_environment(folder / tool, requirements(tool))
        except (subprocess.CalledProcessError, OSError) as error:
            failures[tool] = str(error)
            if (folder / tool).exists():
                (folder / tool).rename(folder / f"{tool}.broken")
    return failures


def make_environment(place: Path, wanted: Path) -> None:
    """Make one environment from a requirements file; raises CalledProcessError if a command fails."""
    python = str(place / "bin" / "python")
    with tempfile.TemporaryDirectory(prefix="fxopt-peers-") as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(constraints_for(wanted.read_text(), CONSTRAINTS.read_text()))
        pip = [python, "-m", "pip", "install", "-q", "--no-compile", "-c", str(constraints), "-r", str(wanted)]
        for command in ([sys.executable, "-m", "venv", "--clear", str(place)], pip, [python, "-c", CPU_ONLY]):
            subprocess.run(command, check=True)
