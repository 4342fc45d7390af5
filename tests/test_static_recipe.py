"""The static int8 recipe holds by default where plain quantization fails: no ignore list, no strength set by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from fxopt.graph.interpret import sqnr
from fxopt.graph.pipeline import Pipeline
from fxopt.passes.cleanup import CLEANUP
from fxopt.passes.quantize import Quantize
from fxopt.recipes import Calibrated, quantizations
from fxopt.target import TARGETS
from tests.passes.quantize.nets import Encoder, Inverted, images, program_of
from tests.passes.quantize.test_correct_bias import coarse
from tests.passes.quantize.test_smooth_quant import tokens, with_outliers


@pytest.mark.parametrize(
    ("model", "inputs", "gain"),
    [
        # like mobilenetv3_small_050: depthwise layers whose rounded weights shift the means of what they make
        (lambda: coarse(Inverted()), lambda seed, count: images(count, seed=seed), 3.0),
        # like swin: layer norms with outlier channels before their linears
        (lambda: with_outliers(Encoder()), lambda seed, count: tokens(count, seed), 6.0),
    ],
    ids=["shifted means", "outlier channels"],
)
def test_hard_models_hold_by_default(
    model: Callable[[], nn.Module], inputs: Callable[[int, int], Tensor], gain: float
) -> None:
    data, held_out = [inputs(seed, 4) for seed in range(4)], inputs(9, 16)
    program = Pipeline(tuple(CLEANUP))(program_of(model().eval(), data[0]))
    expected = program(held_out)
    plain = Quantize(data, observer="minmax")(program)
    _, recipe = dict(quantizations("int8-static", program, TARGETS["x86"], data))["static"]({})
    assert sqnr(expected, recipe(held_out)) > sqnr(expected, plain(held_out)) + gain


def test_the_classifier_of_a_convolutional_net_is_not_smoothed() -> None:
    program = Pipeline(tuple(CLEANUP))(program_of(Inverted().eval(), images(4)))
    way = dict(quantizations("int8-static", program, TARGETS["x86"], [images(4)]))["static"]
    assert isinstance(way, Calibrated) and way.eased is program
