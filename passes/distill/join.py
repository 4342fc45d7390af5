"""A frozen teacher inside the graph of another Program."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxopt.graph.lift import spec_of
from fxopt.graph.program import NORMS, TRAINING_ARGUMENT, Program
from fxopt.graph.rewrite import Edit, argument, argument_names, constant
from fxopt.passes.cleanup import CLEANUP

aten = torch.ops.aten
PREFIX = "teacher"
TURNS = (aten.transpose.int, aten.permute.default)


def join(edit: Edit, teacher: Program, wanted: Collection[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Copy what a teacher computes some of its values by into an open Program; returns the copy of each of them.

    The copy reads the inputs of the open Program, its tensors are parameters that are not trained, and train() does not
    change what it does.
    """
    nodes = list(dict.fromkeys(wanted))
    frozen = freeze(_with_outputs(teacher, nodes))
    prefix = _free_prefix(edit)
    output = edit.graph.output_node()
    copies: dict[fx.Node, Any] = dict(zip(frozen.placeholders, edit.graph.find_nodes(op="placeholder"), strict=True))
    for node in frozen.graph.nodes:
        if node.op == "get_attr":
            value = constant(frozen.module, node)
            assert value is not None
            copies[node] = edit.add_constant(f"{prefix}.{node.target}", _frozen(value), before=output)
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
            copies[node] = edit.call(
                node.target, *args, before=output, like=node, name=f"{prefix}_{node.name}", **kwargs
            )
    values = frozen.output_node.args[0]
    assert isinstance(values, tuple)
    return dict(zip(nodes, fx.map_arg(values, copies.__getitem__), strict=True))


def _free_prefix(edit: Edit) -> str:
    return next(name for name in (PREFIX, *(f"{PREFIX}_{n}" for n in range(2, 99))) if not hasattr(edit.module, name))


def _frozen(value: Tensor) -> nn.Parameter:
    """Return a tensor as a parameter that is not trained; kernels in the layout that convolutions run faster in."""
    value = value.detach()
    if value.ndim == 4 and value.is_floating_point():
        value = value.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(value, requires_grad=False)


def _with_outputs(program: Program, nodes: Collection[fx.Node]) -> Program:
    """Return the Program that gives some of its values."""
    edit = Edit(program, by=None)
    edit.graph.output_node().args = (tuple(edit.copies[node] for node in nodes),)
    specs = tuple(spec_of(f"value_{number}", node.meta["val"], program.dims) for number, node in enumerate(nodes))
    spec = pytree.tree_structure(tuple(range(len(nodes))))
    return edit.finish(outputs=specs, out_spec=spec, taps=())


def freeze(program: Program) -> Program:
    """Return a Program that computes what this one does in inference, and that train() leaves alone.

    Batch norms are folded into layers, or become ops that know no training; recurrent layers lose their dropout.
    """
    program = program.eval()
    for step in CLEANUP:
        program = step(program)
    edit = Edit(program, by=None)
    for node in edit.calls(*TRAINING_ARGUMENT):
        if node.target in NORMS:
            _fix_statistics(edit, node)
        elif "dropout" in argument_names(node):
            arguments = [argument(node, name) for name in argument_names(node)]
            arguments[argument_names(node).index("dropout")] = 0.0
            edit.update(node, arguments, {})
    for node in edit.calls(aten.linear.default):
        _read_in_one_piece(edit, node)
    return replace(edit.finish(), notes=program.notes)


def _fix_statistics(edit: Edit, node: fx.Node) -> None:
    mean = node.args[3]
    if mean is None:
        return  # the statistics are the input's own, in training and in inference
    momentum, eps = (argument(node, name) for name in ("momentum", "eps"))
    op = aten._native_batch_norm_legit_no_training.default
    result = edit.call(op, *node.args[:5], momentum, eps, before=node)
    edit.replace(node, edit.call(operator.getitem, result, 0, before=node))


def _read_in_one_piece(edit: Edit, linear: fx.Node) -> None:
    """Copy the turned value that a linear reads: torch folds it to a matrix only for weights that are trained.

    The batch of products that it takes otherwise has 2.7 times the time (the linear of q, k and v of
    nn.MultiheadAttention in vit_b_16).
    """
    value, *others = linear.args
    if isinstance(value, fx.Node) and value.target in TURNS:
        copy = edit.call(aten.clone.default, value, before=linear, memory_format=torch.contiguous_format)
        linear.args = (copy, *others)
