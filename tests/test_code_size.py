"""Sizes that keep the code readable: lines of a file, lines of a function."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("fxopt", "passes", "export", "tests", "benchmarks")
FILE_LINES = 400
FUNCTION_LINES = 60


def sources() -> Iterator[Path]:
    """Yield each of our files once, although fxopt/passes and fxopt/export are links to two of the folders."""
    seen = {path.resolve() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    yield from sorted(seen)


def long_functions(source: str) -> list[str]:
    return [
        f"{node.lineno} {node.name}: {size} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (size := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    ]


def test_files_are_short() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in sources()}
    assert sizes
    assert {name: size for name, size in sizes.items() if size > FILE_LINES} == {}


def test_functions_are_short() -> None:
    found = [f"{path.relative_to(ROOT)}:{row}" for path in sources() for row in long_functions(path.read_text("utf-8"))]
    assert found == []


def test_a_long_function_is_found() -> None:
    body = "    x = 1\n" * FUNCTION_LINES
    assert long_functions(f"class A:\n  def f(self):\n{body}") == [f"2 f: {FUNCTION_LINES + 1} lines"]
    assert long_functions(f"def f():\n{body[: -len('    x = 1') - 1]}") == []
