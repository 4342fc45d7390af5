"""The tensors of a Program that training changes: its trainable parameters, and its buffers (statistics, masks)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, constant, same_kind, set_attribute


def trainable(program: Program) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, each once, by name."""
    return {name: value for name, value in program.module.named_parameters() if value.requires_grad}


def trained_tensors(program: Program) -> dict[str, Tensor]:
    """Return all that training may change, each tensor once, by name. Other parameters are frozen."""
    return {**trainable(program), **dict(program.module.named_buffers())}


def own_copy(program: Program, layout: torch.memory_format = torch.preserve_format) -> Program:
    """Return the Program with copies of all that training may change; tensors that were one stay one.

    `layout`: of parameters of four dimensions.
    """
    edit = Edit(program, by=None)
    changing = {id(value) for value in trained_tensors(program).values()}
    copies: dict[int, Tensor] = {}
    for node in edit.graph.find_nodes(op="get_attr"):
        value = constant(edit.module, node)
        if value is None or id(value) not in changing:
            continue
        if id(value) not in copies:
            kept = layout if value.ndim == 4 and isinstance(value, nn.Parameter) else torch.preserve_format
            copies[id(value)] = same_kind(value, value.detach().clone(memory_format=kept))
        set_attribute(edit.module, str(node.target), copies[id(value)])
    return edit.finish()


@torch.no_grad()
def load_tensors(program: Program, tensors: Mapping[str, Tensor]) -> None:
    """Write values into what training may change; `tensors` has the names of trained_tensors(), and all of them."""
    for name, value in trained_tensors(program).items():
        value.copy_(tensors[name])


def first_not_finite(program: Program) -> str | None:
    """Return the name of a trainable parameter that holds NaN or infinity, if there is one."""
    values = trainable(program).items()
    return next((name for name, value in values if value.is_floating_point() and not value.isfinite().all()), None)
