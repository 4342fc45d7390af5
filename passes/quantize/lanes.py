"""Two lanes of values: each node as it is in float, and as it is behind quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from fxopt.graph.interpret import step_of
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument

Lanes = dict[fx.Node, tuple[Any, Any]]  # the value in float, and behind quantization


def compute_both(
    program: Program, node: fx.Node, values: Lanes, weights: Mapping[fx.Node, Tensor] | None = None
) -> tuple[Any, Any]:
    """Compute a node in both lanes; once where nothing before it was quantized.

    In float, fake_quantize does nothing. `weights` are values to read behind quantization instead of those computed.
    """
    compute = step_of(program, node).compute
    sources = node.all_input_nodes
    changed = {source: weights[source] for source in sources if source in weights} if weights else {}
    exact = {source: values[source][0] for source in sources}
    quantized = {source: values[source][1] for source in sources} | changed
    if node.target is fake_quantize:
        return values[argument(node, "x")][0], compute(quantized)
    left = compute(exact)
    return left, left if all(exact[source] is quantized[source] for source in sources) else compute(quantized)
