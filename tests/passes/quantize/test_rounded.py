"""Weights rounded with error feedback are kept where they take noise out of the outputs, on other samples."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from fxopt.demo import demo_data, demo_model
from fxopt.graph.capture import capture
from fxopt.graph.interpret import sqnr
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, constant
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import Quantize, RoundGptq
from fxopt.passes.quantize.rounded import apart, rounded_if_better

DATA = demo_data("calibration")[0][:40]
PARTS = list(torch.split(DATA, 8))


@pytest.fixture(scope="module")
def program() -> Program:
    return Pipeline(tuple(CLEANUP))(capture(demo_model(), DATA[:4], dynamic="batch"))


@pytest.fixture(scope="module")
def calibrated(program: Program) -> Program:
    return Quantize(PARTS, "x86-avx2").calibrated(program)


def operations(program: Program) -> list[object]:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def test_the_samples_to_judge_by_are_others(program: Program) -> None:
    fitted, others = apart(PARTS, program)
    assert torch.equal(torch.cat([item[0] for item in fitted]), DATA[8:24])
    assert torch.equal(torch.cat([item[0] for item in others]), DATA[24:40])
    more = list(torch.split(demo_data("calibration")[0][:100], 8))  # what is tried is judged by the first ones
    fitted, others = apart(more, program)
    assert torch.equal(torch.cat([item[0] for item in fitted]), torch.cat(more)[32:48])
    assert torch.equal(torch.cat([item[0] for item in others]), torch.cat(more)[48:64])
    fitted, others = apart([DATA[:1]], program)
    assert len(fitted) == len(others) == 1 and torch.equal(fitted[0][0], others[0][0])


def test_better_weights_are_kept(program: Program, calibrated: Program) -> None:
    fitted, others = apart(PARTS, program)
    rounded = rounded_if_better(calibrated, fitted, others)
    assert rounded.notes == calibrated.notes
    held_out = demo_data("test")[0][:100]
    exact = program(held_out)
    assert sqnr(exact, rounded(held_out)) > sqnr(exact, calibrated(held_out)) + 1
    graphs = [
        [node.target for node in found.graph.nodes if node.op == "call_function"] for found in (rounded, calibrated)
    ]
    assert graphs[0] == graphs[1]


def test_worse_weights_are_left_out(program: Program, calibrated: Program) -> None:
    def spoil(self: RoundGptq, found: Program) -> Program:
        edit = Edit(found, by=self)
        node = next(node for node in edit.graph.find_nodes(op="get_attr") if str(node.target).endswith("weight"))
        value = constant(found.module, node)
        assert value is not None
        changed = edit.add_constant("spoilt", value.detach() + 0.1 * value.abs().max(), before=next(iter(node.users)))
        node.replace_all_uses_with(changed)
        return edit.finish()

    with patch.object(RoundGptq, "__call__", spoil):
        found = rounded_if_better(calibrated, *apart(PARTS, program))
    assert found.notes[-1].startswith("Rounding weights with feedback does not bring the outputs nearer")
    assert str(found) == str(replace(calibrated, notes=found.notes))


def test_quantize_rounds_on_request(program: Program) -> None:
    exact = program(DATA)
    plain, rounded = (Quantize(PARTS, "x86-avx2", correct_bias=True, round_weights=on)(program) for on in (False, True))
    assert sqnr(exact, rounded(DATA)) > sqnr(exact, plain(DATA)) + 1
    assert operations(plain) == operations(rounded)


def test_empty_batches_are_no_samples(program: Program, calibrated: Program) -> None:
    assert rounded_if_better(calibrated, *apart([DATA[:0]], program)) is calibrated
