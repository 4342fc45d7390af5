"""CorrectBiasByMoments: bias correction without data.

    b_c -= sum_i (W'_ci - W_ci) E[x_i]    W': the quantized weights, summed over the taps of a convolution

(Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, analytic.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument
from fxopt.passes.cleanup.layers import LAYERS
from fxopt.passes.quantize.correct_bias import is_quantized_layer, shift_bias
from fxopt.passes.quantize.moment_rules import layer_inputs
from fxopt.passes.quantize.moments import Moments


@dataclass(frozen=True)
class CorrectBiasByMoments:
    """Take out of the biases of a calibrated Program what rounding of weights adds to the mean of each channel.

    - `moments`: of the values of the float Program, by node name, see moments_of().

    A layer without a bias gets one; one whose input has unknown moments is left alone. Zero padding is not taken into
    account, nor is the rounding of values, whose mean is near zero.
    """

    moments: Mapping[str, Moments] = field(repr=False)

    def __call__(self, program: Program) -> Program:
        """Return the corrected Program."""
        edit = Edit(program, by=self)
        for node in list(edit.graph.nodes):
            if is_quantized_layer(node):
                correction = _correction(edit, node, self.moments)
                if correction is not None:
                    shift_bias(edit, node, correction)
        return edit.finish()


def _correction(edit: Edit, node: fx.Node, moments: Mapping[str, Moments]) -> Tensor | None:
    value, fake = node.args[:2]
    assert isinstance(value, fx.Node) and isinstance(fake, fx.Node) and isinstance(value.args[0], fx.Node)
    weight, *parameters = (edit.constant(argument) for argument in fake.args[:3])
    source = moments.get(value.args[0].name)
    if weight is None or source is None:
        return None
    error = (fake_quantize(weight, *parameters, *fake.args[3:]) - weight).detach().double()
    groups = argument(node, "groups") if LAYERS[node.target].spatial else 1
    error = error.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(3)
    mean, _ = layer_inputs(node, source, groups * weight.shape[1])
    added: Tensor = (error * mean.reshape(groups, 1, -1)).sum(2).flatten()
    return -added.float()
