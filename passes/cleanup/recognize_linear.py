"""A product with a matrix of weights is a linear layer, however it is spelled.

x @ W          ->  linear(x, Wᵀ)
b + x @ W      ->  linear(x, Wᵀ, b)        addmm, as in GPT-2
x @ Wᵀ         ->  linear(x, W)

What knows linear layers (merging, quantization, pruning) then knows these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument, constant, same_kind

aten = torch.ops.aten
# Input, matrix and what is added, by their names in the schema.
PRODUCTS: dict[Any, tuple[str, str, str | None]] = {
    aten.matmul.default: ("self", "other", None),
    aten.mm.default: ("self", "mat2", None),
    aten.addmm.default: ("mat1", "mat2", "self"),
}


@dataclass(frozen=True)
class RecognizeLinear:
    """Turn products with a matrix of the module into linear layers. The outputs are the same.

    Turned:
    1. matmul and mm, of an input with two dimensions or more; the weight is the transposed matrix, in the same memory.
    2. addmm with factors 1, where one tensor of the module with a number a column is added: the bias.
    3. Products with a transposed matrix of the module: that matrix is the weight, also where it is tied to another op.
    Left alone:
    4. Products of two computed values, or with more than one matrix; matrices on the left; integers.
    5. addmm that adds anything else.
    """

    def __call__(self, program: Program) -> Program:
        """Return the changed Program, or `program` itself if there is no such product."""
        if not any(_find(program.module, node) for node in program.graph.nodes):
            return program
        edit = Edit(program, by=self)
        transposed: dict[str, fx.Node] = {}
        for node in edit.calls(*PRODUCTS):
            found = _find(edit.module, node)
            if found is not None:
                x, matrix, bias = found
                weight = _transposed(edit, matrix, node, transposed)
                node.target = aten.linear.default
                node.args, node.kwargs = ((x, weight) if bias is None else (x, weight, bias)), {}
        return edit.finish()


def _find(module: nn.Module, node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """Return the input, the matrix (or its transposition) and the bias of a product that is a linear layer."""
    names = PRODUCTS.get(node.target) if node.op == "call_function" else None
    if names is None:
        return None
    x, matrix = argument(node, names[0]), argument(node, names[1])
    value = constant(module, matrix)
    value = constant(module, _turned(matrix)) if value is None else value
    if value is None or value.ndim != 2 or not value.is_floating_point() or x.op == "get_attr":
        return None
    if x.meta["val"].ndim < 2 or x.meta["val"].dtype != value.dtype:
        return None
    if names[2] is None:
        return x, matrix, None
    bias = argument(node, names[2])
    return (x, matrix, bias) if _is_bias(module, node, bias) else None


def _is_bias(module: nn.Module, node: fx.Node, bias: fx.Node) -> bool:
    """Say whether what an addmm adds is one tensor of the module with a number for each column."""
    value = constant(module, bias)
    plain = argument(node, "alpha") == 1 and argument(node, "beta") == 1
    return plain and value is not None and tuple(value.shape) == tuple(node.meta["val"].shape[-1:])


def _turned(matrix: fx.Node) -> fx.Node | None:
    """Return the matrix that a node transposes."""
    if matrix.op != "call_function" or not isinstance(matrix.meta["val"], Tensor) or matrix.meta["val"].ndim != 2:
        return None
    turned = matrix.target in (aten.t.default, aten.numpy_T.default, aten.mT.default)
    if matrix.target is aten.transpose.int:
        turned = (argument(matrix, "dim0") - argument(matrix, "dim1")) % 2 == 1
    elif matrix.target is aten.permute.default:
        turned = argument(matrix, "dims")[0] % 2 == 1
    source = matrix.args[0] if turned else None
    return source if isinstance(source, fx.Node) else None


def _transposed(edit: Edit, matrix: fx.Node, user: fx.Node, known: dict[str, fx.Node]) -> fx.Node:
    """Return a node that reads the transposed matrix; one for all products with the same matrix."""
    source = _turned(matrix)
    if source is not None:
        return source
    name = str(matrix.target)
    if name not in known:
        value = edit.constant(matrix)
        assert value is not None
        known[name] = edit.add_constant(f"{name}_transposed", same_kind(value, value.detach().t()), before=user)
    return known[name]
