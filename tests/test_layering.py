"""The floors: an import goes downwards only. The table below is the whole rule; all else in fxopt is a driver."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = ("fxopt.graph", "fxopt.target", "fxopt.errors", "fxopt.data", "fxopt.version")

# Floor -> what its modules may import of fxopt. A module that no row covers is a driver and may import everything.
MAY_IMPORT = {
    "fxopt.errors": (),
    "fxopt.version": (),
    "fxopt.graph": ("fxopt.graph", "fxopt.errors", "fxopt.version"),
    "fxopt.machine": (),
    "fxopt.target": ("fxopt.target", "fxopt.machine", "fxopt.errors"),
    "fxopt.data": ("fxopt.data", "fxopt.graph", "fxopt.errors"),
    "fxopt.demo.run": ("fxopt",),  # the demo's assets are below the compiler, its run is above
    "fxopt.demo": ("fxopt.demo", "fxopt.errors"),
    "fxopt.passes": ("fxopt.passes", *BASE),
    "fxopt.export": ("fxopt.export", *BASE),
}


def is_within(module: str, floor: str) -> bool:
    return module == floor or module.startswith(floor + ".")


def imported_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) for every import, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(module: str, source: str) -> list[str]:
    allowed = next((names for floor, names in MAY_IMPORT.items() if is_within(module, floor)), ("fxopt",))
    return [
        f"{module}:{line} imports {name}"
        for line, name in imported_names(source)
        if is_within(name, "fxopt") and not any(is_within(name, floor) for floor in allowed)
    ]


def modules() -> Iterator[tuple[str, Path]]:
    """Yield (dotted name as shipped, file) for every module of fxopt, passes/ and export/."""
    for folder, prefix in (("fxopt", ""), ("passes", "fxopt."), ("export", "fxopt.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:2] not in (("fxopt", "passes"), ("fxopt", "export")):  # the links: seen under their own folder
                yield prefix + ".".join(parts).removesuffix(".__init__"), path


def test_imports_go_downwards_only() -> None:
    assert [line for module, path in modules() for line in violations(module, path.read_text("utf-8"))] == []


def test_every_floor_is_there() -> None:
    names = {name for name, _ in modules()}
    assert {"fxopt", "fxopt.graph", "fxopt.passes", "fxopt.export"} <= names


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fxopt.graph.program", "import fxopt.passes"),
        ("fxopt.graph.program", "from fxopt import export"),
        ("fxopt.graph.program", "from fxopt import Program"),
        ("fxopt.graph.program", "import fxopt"),
        ("fxopt.graph.program", "def load():\n    from fxopt.compile import compile\n"),
        ("fxopt.graph.capture", "if TYPE_CHECKING:\n    from fxopt.export.to_onnx import to_onnx\n"),
        ("fxopt.passes.quantize.points", "from fxopt.export import measure"),
        ("fxopt.passes.quantize.points", "import fxopt.report as report"),
        ("fxopt.export.lower", "from fxopt.passes.quantize import Quantize"),
        ("fxopt.export", "from fxopt.cli import main"),
        ("fxopt.errors", "from fxopt.graph.program import Program"),
        ("fxopt.demo.model", "from fxopt.graph import Program"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "fxopt.graph.program",
            "import torch\nfrom fxopt.graph.ops import quantize\nfrom fxopt.errors import FxoptError",
        ),
        ("fxopt.graph.program", "import fxoptimizer"),  # another package, whose name begins alike
        ("fxopt.passes.cleanup.fold", "from fxopt.graph import rewrite\nfrom fxopt.passes.cleanup import names"),
        ("fxopt.passes.quantize.place", "from fxopt import target"),
        ("fxopt.export.lower", "from fxopt.target import Target\nfrom fxopt.data import batches"),
        ("fxopt.demo.run", "from fxopt.compile import compile"),
        ("fxopt.compile", "from fxopt import export, passes\nfrom fxopt.graph import capture"),
        ("fxopt", "from fxopt.compile import compile"),
    ],
)
def test_a_downward_import_is_allowed(module: str, source: str) -> None:
    assert violations(module, source) == []
