"""RoundBiases: biases of fewer bits than the int32 sums that they are added to.

conv2d(x, w, b) -> conv2d(x, w, b'),    b' = scale * clamp(round(b / scale), -m, m),    m = 2^(bits-1) - 1
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument, same_kind
from fxopt.passes.quantize.correct_bias import is_quantized_layer
from fxopt.passes.quantize.scheme import BIAS_BITS, Levels


@dataclass(frozen=True)
class RoundBiases:
    """Round the biases of the quantized layers of a calibrated Program to few bits, with one scale each.

    - `bits`: 8 or 16; 32 changes nothing, as Convert rounds to the steps of the 32-bit sums. `power_of_two`: scales
      are powers of two, so that a shift brings a bias to the sums' steps (fixed point).

    Between CorrectBias and Convert. Convert stores the rounded values in those steps, as the kernels want them: on a
    device whose biases are of few bits, the values are these. Raises PassError for other bits.
    """

    bits: int = 16
    power_of_two: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BIAS_BITS:
            raise PassError(f"Biases have {self.bits!r} bits. Choose one of {', '.join(map(str, BIAS_BITS))}.")

    def __call__(self, program: Program) -> Program:
        """Return the Program with rounded biases, or `program` itself if there are none."""
        layers = [node for node in program.graph.nodes if is_quantized_layer(node) and argument(node, "bias")]
        if self.bits == max(BIAS_BITS) or not layers:
            return program
        edit = Edit(program, by=self)
        for node in layers:
            self._round(edit, argument(edit.copies[node], "bias"), edit.copies[node])
        return edit.finish()

    def _round(self, edit: Edit, bias: fx.Node, node: fx.Node) -> None:
        value = edit.constant(bias)
        assert value is not None
        rounded = same_kind(value, self.rounded(value.detach()))
        node.replace_input_with(bias, edit.add_constant(f"{bias.target}_int{self.bits}", rounded, before=node))

    def rounded(self, bias: Tensor) -> Tensor:
        """Return the values that a bias has after rounding."""
        largest = 2 ** (self.bits - 1) - 1
        levels = Levels(-largest, largest, symmetric=True, power_of_two=self.power_of_two)
        reach = float(bias.abs().max()) if bias.numel() else 0.0
        scale, _ = levels.parameters(-reach, reach)
        return (bias.double() / scale).round().clamp(-largest, largest).mul(scale).to(bias.dtype)
