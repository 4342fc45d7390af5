"""RemoveFakeQuantize: the float Program comes back, and with it fewer bits step by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxopt.graph.ops import fake_quantize
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import (
    Calibrate,
    Convert,
    FixScales,
    InsertObservers,
    LearnScales,
    RemoveFakeQuantize,
    Scheme,
)
from tests.passes.quantize.nets import Branches, Gated, Residual, images, program_of
from tests.passes.quantize.qat import train


@pytest.mark.parametrize("net", [Residual, Branches, Gated])
@pytest.mark.parametrize("passes", [(), (LearnScales(),), (LearnScales(), FixScales())])
def test_the_float_program_comes_back(net: type[nn.Module], passes: tuple[LearnScales | FixScales, ...]) -> None:
    x = images(2, 16)
    program = Pipeline(CLEANUP)(program_of(net(), x))
    observed = InsertObservers()(program)
    calibrated = Pipeline((Calibrate([x]), *passes))(observed)
    for before in (observed, calibrated):
        after = verify(RemoveFakeQuantize()(before), full=True)
        assert str(after) == str(program) and torch.equal(after(x), program(x))
        assert set(after.module.state_dict()) == set(program.module.state_dict())


def test_bits_go_down_step_by_step_with_the_trained_weights() -> None:
    x = images(4, 16)
    program = Pipeline(CLEANUP)(program_of(Residual(), x))
    weight, names = program.module.stem.weight.detach().clone(), set(program.module.state_dict())  # type: ignore[union-attr,operator]
    levels = []
    for bits in (8, 6, 4):
        scheme = Scheme(bits, bits, clip_weights="mse")
        quantized = Pipeline((InsertObservers(), Calibrate([x], scheme=scheme), LearnScales()))(program)
        train(quantized, x, 2)
        fixed: Program = FixScales()(quantized.eval())
        levels.append({
            argument(node, "quant_max") for node in fixed.graph.find_nodes(op="call_function", target=fake_quantize)
        })  # fmt: skip
        program = RemoveFakeQuantize()(fixed)
        assert set(program.module.state_dict()) == names
        trained = program.module.stem.weight.detach().clone()  # type: ignore[union-attr,operator]
        assert not torch.equal(trained, weight)
        weight = trained
    assert levels == [{255, 127}, {63, 31}, {15, 7}]
    verify(Convert()(fixed))


def test_what_has_none_comes_back() -> None:
    x = images()
    program = program_of(Residual(), x)
    converted = Pipeline((InsertObservers(), Calibrate([x]), Convert()))(program)
    assert RemoveFakeQuantize()(program) is program and RemoveFakeQuantize()(converted) is converted
