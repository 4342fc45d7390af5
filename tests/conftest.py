"""What every test shares: seeds, and the golden texts of rewrites."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fxopt.graph.printer import format_program
from fxopt.graph.program import Program

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores

GOLDEN = Path(__file__).resolve().parent / "golden"
Golden = Callable[[Program, Program], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write tests/golden/*.txt from what the passes give now"
    )


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """Let collections of cycles skip what the libraries made: the tests compile hundreds of small models."""
    gc.freeze()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random numbers, in whatever order the tests run."""
    torch.manual_seed(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Return a function that compares the text of a Program before and after with tests/golden/<test name>.txt."""
    name = re.sub(r"\W+", "_", re.sub("^test_(golden_)?", "", request.node.name)).strip("_")

    def compare(before: Program, after: Program) -> None:
        path = GOLDEN / f"{name}.txt"
        text = f"# before\n{format_program(before)}\n# after\n{format_program(after)}"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        assert path.is_file(), f"{path.name} is missing: run pytest --update-golden and read what it wrote"
        assert text == path.read_text("utf-8"), "run pytest --update-golden if the new text is what you want"

    return compare
