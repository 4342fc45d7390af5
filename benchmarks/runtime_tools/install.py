"""The runtimes' own places: a virtual environment for OpenVINO, a folder of npm packages for onnxruntime-web."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from benchmarks.peer_tools.environments import make_environment
from benchmarks.runtime_tools.run import HERE, WEB


def install(folder: Path) -> dict[str, str]:
    """Make both in a folder. Returns what went wrong, by runtime."""
    failures = {}
    for name, make in (("openvino", _openvino), (WEB, _web)):
        print(f"{name}: installing", flush=True)
        try:
            make(folder / name)
        except (subprocess.CalledProcessError, OSError) as error:
            failures[name] = str(error)
    return failures


def _openvino(place: Path) -> None:
    make_environment(place, HERE / "requirements-openvino.txt")


def _web(place: Path) -> None:
    """Install what package.json asks for; nothing of the packages is run."""
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "package.json", place)
    quiet = ["--no-fund", "--no-audit", "--ignore-scripts", "--loglevel=error"]
    subprocess.run(["npm", "install", *quiet], cwd=place, check=True)
