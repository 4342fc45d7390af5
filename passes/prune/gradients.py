"""Gradients in the tensors of a Program, one batch of calibration data at a time, with a loss or without labels.

    loss = sum_i v_i f_i(x),   v_i = +1 or -1 at random

Without labels, the loss is a random projection of the outputs (Hutchinson 1990, "A Stochastic Estimator of the Trace
of the Influence Matrix"): the mean of (d loss)^2 over v is the squared change |df|^2 of all outputs, since
E[v_i v_j] = 0 for i != j. So the mean of (sum w g)^2 is, to first order in the weights, how far the outputs move when
these weights become zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.data import calibration_items, split_items
from fxopt.errors import DataError, PassError
from fxopt.graph.padding import real_positions, without_padding
from fxopt.graph.program import NORMS, Program
from fxopt.graph.rewrite import constant

Loss = Callable[[Any, Any], Tensor]  # of the outputs, as the model returns them, and of the batch, as the data has it
Batch = tuple[Any, tuple[Tensor, ...]]


def batch_gradients(
    program: Program, data: Iterable[Any], loss: Loss | None = None, seed: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradients of each batch in every floating-point tensor of a Program but running statistics, by name.

    `loss(outputs, batch)` returns one number; `batch` is the item as `data` gives it, labels included. Without a loss,
    random projections of the floating-point outputs are differentiated, sample by sample where the batch is dynamic.
    The Program runs in inference mode and stays as it is; tied tensors have one gradient, under each of their names.

    Raises DataError for data that is empty or does not fit, and PassError where the loss is not a finite number or
    depends on no tensor of the Program.
    """
    program = program.eval()
    leaves = _leaves(program)
    generator = torch.Generator().manual_seed(seed)
    distinct = {id(leaf): leaf for leaf in leaves.values()}
    for number, (item, inputs) in enumerate(_batches(program, data, split=loss is None)):
        with torch.inference_mode(mode=False), torch.enable_grad():
            outputs = _Run(program.module, leaves).run(*inputs)
            if loss is None:
                value = _projection(program, inputs, outputs, generator)
            else:
                value = loss(program.unflatten(outputs), item)
            _check(value, number)
            found = _gradients(value, list(distinct.values()))
        by_leaf = dict(zip(distinct, found, strict=True))
        yield {name: _or_zero(by_leaf[id(leaf)], leaf) for name, leaf in leaves.items()}


def mean_over_batches(
    program: Program,
    data: Iterable[Any],
    of: Callable[[Tensor, Tensor], Tensor],
    loss: Loss | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return the mean over batches of `of(tensor, its gradient)`, by the tensor's name. See batch_gradients().

    For example `lambda weight, gradient: gradient.square()`: the diagonal of the Fisher or Gauss-Newton matrix.
    """
    tensors = {name: leaf.detach() for name, leaf in _leaves(program).items()}
    totals: dict[str, Tensor] = {}
    count = 0
    for gradients in batch_gradients(program, data, loss, seed):
        count += 1
        for name, gradient in gradients.items():
            value = of(tensors[name], gradient)
            totals[name] = totals[name] + value if name in totals else value
    return {name: total / count for name, total in totals.items()}


class _Run(fx.Interpreter):
    """One run that reads leaves in place of the module's tensors."""

    def __init__(self, module: fx.GraphModule, leaves: dict[str, Tensor]) -> None:
        super().__init__(module, graph=module.graph)
        self.leaves = leaves

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.leaves[target] if target in self.leaves else super().get_attr(target, args, kwargs)


def _leaves(program: Program) -> dict[str, Tensor]:
    """Return tensors to differentiate in, which share the memory of the Program's own; tied ones are one."""
    statistics = {source for node in program.graph.nodes if node.target in NORMS for source in node.args[3:5]}
    leaves: dict[str, Tensor] = {}
    known: dict[Any, Tensor] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        tensor = constant(program.module, node)
        if tensor is None or not tensor.is_floating_point() or node in statistics:
            continue
        place = (tensor.data_ptr() or id(tensor), tuple(tensor.shape), tensor.stride())
        if place not in known:
            with torch.inference_mode(mode=False):
                own = tensor.detach()
                known[place] = (own.clone() if own.is_inference() else own).requires_grad_()
        leaves[str(node.target)] = known[place]
    return leaves


def _batches(program: Program, data: Iterable[Any], split: bool) -> Iterator[Batch]:
    for item, inputs in calibration_items(data, program):
        parts = split_items([inputs], program, 1) if split else [inputs]
        for part in parts:
            if not all(tensor.numel() for tensor in part):
                raise DataError("A calibration batch holds no samples; leave it out.")
            yield item, part


def _projection(program: Program, inputs: tuple[Tensor, ...], outputs: Any, generator: torch.Generator) -> Tensor:
    real = real_positions([spec.name for spec in program.inputs], inputs)
    total = torch.zeros(())
    for output in outputs:
        value = without_padding(output, real)
        if isinstance(value, Tensor) and value.is_floating_point():
            signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
            total = total + (value * signs).sum()
    return total


def _check(value: Any, number: int) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise PassError(f"loss(outputs, batch) must return a tensor with one number, got {got}.")
    if not value.requires_grad:
        raise PassError(
            "The loss depends on no floating-point tensor of the Program, so that there are no gradients. Without a "
            "loss, an output must be of floating point; a loss must not detach what it reads."
        )
    if not value.isfinite():
        raise PassError(
            f"The loss of calibration batch {number} is {float(value.detach())}. Check the data, or the loss."
        )


def _gradients(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(value, leaves, allow_unused=True)
    except RuntimeError as error:
        raise PassError(
            f"The loss has no gradients: {str(error).splitlines()[0]}. Choose a score without any."
        ) from error


def _or_zero(gradient: Tensor | None, leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if gradient is None else gradient
