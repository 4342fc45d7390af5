"""What is shipped: every package, nothing but fxopt, and the README's commands as they are run by .ci/run."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import fxopt.export
import fxopt.passes
from fxopt.version import __version__

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {"fxopt": "fxopt", "passes": "fxopt.passes", "export": "fxopt.export"}  # folder -> package


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def packages_on_disk() -> set[str]:
    found = set()
    for folder, package in SHIPPED.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.parent.relative_to(ROOT / folder).parts
            if folder != "fxopt" or parts[:1] not in (("passes",), ("export",)):  # the links
                found.add(".".join((package, *parts)))
    return found


def test_every_package_is_listed() -> None:
    setuptools = project()["tool"]["setuptools"]
    assert setuptools["packages"] == sorted(packages_on_disk())
    assert setuptools["package-dir"] == {package: folder for folder, package in SHIPPED.items()}


def test_every_package_has_an_init_file() -> None:
    folders = {package: folder for folder, package in SHIPPED.items()}
    for package in packages_on_disk():
        top = max((name for name in folders if (package + ".").startswith(name + ".")), key=len)
        path = ROOT.joinpath(folders[top], *package.removeprefix(top).strip(".").split("."))
        assert (path / "__init__.py").is_file(), package


def test_a_module_of_passes_is_loaded_once_under_its_shipped_name() -> None:
    assert fxopt.passes.__name__ == "fxopt.passes"
    assert fxopt.export.__name__ == "fxopt.export"
    folders = {str(ROOT / "passes"), str(ROOT / "export")}
    doubles = [
        name
        for name, module in sys.modules.items()
        if str(Path(getattr(module, "__file__", None) or "").parent) in folders
    ]
    assert [name for name in doubles if not name.startswith("fxopt.")] == []


def test_every_dependency_is_pinned_for_the_tests() -> None:
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), flags=re.MULTILINE))
    extras = project()["project"]["optional-dependencies"]
    wanted = [*project()["project"]["dependencies"], *(name for names in extras.values() for name in names)]
    names = {re.split(r"[>=\[ ]", requirement, maxsplit=1)[0] for requirement in wanted} - {"fxopt"}
    assert names - pinned == set()


def test_readme_has_the_two_commands() -> None:
    commands = [
        line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("pip install ")
    ]
    assert [command.split(" && ")[1].split()[0] for command in commands] == ["fxopt", "pytest"]


@pytest.mark.slow
def test_wheel_and_sdist_hold_fxopt_only(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    ignore = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__")
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=ignore)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(checkout)]
    subprocess.run(command, check=True, capture_output=True, text=True)  # the sdist, and from it the wheel
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")

    shipped = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in shipped} == {"fxopt", f"fxopt-{__version__}.dist-info"}
    expected = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in SHIPPED.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".typed", ".npz", ".safetensors", ".json", ".jinja"}
        and not (folder == "fxopt" and path.relative_to(ROOT / folder).parts[0] in ("passes", "export"))
    }
    assert {name for name in shipped if name.startswith("fxopt/")} == expected

    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    metadata = {"PKG-INFO", "README.md", "LICENSE", "pyproject.toml", "setup.cfg", "fxopt.egg-info"}
    assert tops - metadata <= {"fxopt", "passes", "export", "tests"}
