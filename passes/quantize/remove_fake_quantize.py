"""RemoveFakeQuantize: a calibrated Program becomes float again, with the weights that it has.

fake_quantize(x, ...), learned_fake_quantize(x, ...), observe(x, ...)  ->  x
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fxopt.graph.learned import learned_fake_quantize
from fxopt.graph.ops import fake_quantize, observe
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument


@dataclass(frozen=True)
class RemoveFakeQuantize:
    """Take the nodes out that InsertObservers, Calibrate and LearnScales put in, with their scales.

    What training has made of weights and biases stays. So bits can go down step by step: train at 8 bits, remove, and
    calibrate for fewer. A converted Program has no float weights any more, and comes back as it is.
    """

    def __call__(self, program: Program) -> Program:
        """Return the float Program, or `program` itself if nothing in it is fake-quantized or observed."""
        edit = Edit(program, by=self)
        nodes = list(edit.calls(fake_quantize, learned_fake_quantize, observe))
        if not nodes:
            return program
        for node in nodes:
            source = argument(node, "x")
            assert isinstance(source, fx.Node)
            edit.replace(node, source)
        return edit.finish()
