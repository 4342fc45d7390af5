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
from fxopt.machine import this_machine

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores

EXACT_EVERYWHERE = "x86-avx2"  # this_machine() of a CPU without VNNI
GOLDEN = Path(__file__).resolve().parent / "golden"
Golden = Callable[[Program, Program], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write tests/golden/*.txt from what the passes give now"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this CPU cannot show: without VNNI, sums of products of 8-bit weights saturate in onnxruntime."""
    if item.get_closest_marker("vnni") is None or this_machine() != EXACT_EVERYWHERE:
        return
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if parameters.get("target") != EXACT_EVERYWHERE:
        pytest.skip("no VNNI: 8-bit products saturate on this CPU")


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
