"""How large the inputs of each weight are: the mean of the squares of every input channel, over calibration data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.data import calibration_inputs
from fxopt.graph.interpret import run
from fxopt.graph.padding import real_positions, without_padding
from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument, constant
from fxopt.passes.cleanup.layers import LAYERS

aten = torch.ops.aten

PRODUCTS: dict[Any, tuple[str, str]] = {
    aten.matmul.default: ("self", "other"),
    aten.mm.default: ("self", "mat2"),
    aten.addmm.default: ("mat1", "mat2"),
}


@dataclass(frozen=True)
class _Reader:
    """One use of a weight: the value that it multiplies, and how the channels of both lie.

    `axis`: of the channels in the value, from the end. `dim`: of the channels of a group in the weight.
    """

    weight: str
    shape: tuple[int, ...]
    source: fx.Node
    axis: int
    dim: int
    groups: int = 1


def input_second_moments(program: Program, data: Iterable[Any]) -> dict[str, Tensor]:
    """Return E[x_j^2] of what each weight of a linear, convolution or matrix product multiplies, by the weight's name.

    Each has as many dimensions as its weight and broadcasts against it: `[1, inputs]` for a linear one, `[1, inputs,
    1, 1]` for conv2d, `[outputs, inputs of a group, 1, 1]` if it has groups. The mean is over samples and positions, of
    all uses of the weight, without padding (see attention_mask); the Program runs in inference mode and streams.

    Raises DataError for data that is empty or does not fit.
    """
    program = program.eval()
    readers: defaultdict[fx.Node, list[_Reader]] = defaultdict(list)
    for reader in _readers(program):
        readers[reader.source].append(reader)
    sums: dict[_Reader, Tensor] = {}
    counts: defaultdict[_Reader, int] = defaultdict(int)
    names = [spec.name for spec in program.inputs]
    for inputs in calibration_inputs(data, program):
        real = real_positions(names, inputs)

        def observe(node: fx.Node, value: Any, real: Tensor | None = real) -> None:
            for axis in {reader.axis for reader in readers.get(node, ())}:
                total, count = _squares(without_padding(value, real if axis == -1 else None), axis)
                for reader in readers[node]:
                    if reader.axis == axis:
                        sums[reader] = sums[reader] + total if reader in sums else total
                        counts[reader] += count

        run(program, inputs, observe)
    return _by_weight(sums, counts)


def input_dims(program: Program) -> set[tuple[str, int]]:
    """Return the dimensions of weights that run over channels of their inputs: (weight's name, dimension)."""
    return {(reader.weight, reader.dim) for reader in _readers(program)}


def _squares(value: Tensor, axis: int) -> tuple[Tensor, int]:
    others = [dim for dim in range(value.ndim) if dim != value.ndim + axis]
    squares = value.float().square().sum(others, dtype=torch.float64) if others else value.double().square()
    return squares, value.numel() // max(value.shape[axis], 1)


def _by_weight(sums: dict[_Reader, Tensor], counts: dict[_Reader, int]) -> dict[str, Tensor]:
    of_weight: defaultdict[str, list[_Reader]] = defaultdict(list)
    for reader in sums:
        of_weight[reader.weight].append(reader)
    result = {}
    for name, readers in of_weight.items():
        total: Tensor = sum((_spread(reader, sums[reader]) for reader in readers), torch.zeros(()))
        result[name] = (total / max(sum(counts[reader] for reader in readers), 1)).float()
    return result


def _spread(reader: _Reader, moments: Tensor) -> Tensor:
    """Lay the moments of all channels out as the weight has them."""
    rank = len(reader.shape)
    if reader.groups > 1:
        each = moments.reshape(reader.groups, -1).repeat_interleave(reader.shape[0] // reader.groups, 0)
        return each.reshape(*each.shape, *[1] * (rank - 2))
    return moments.reshape([-1 if dim == reader.dim else 1 for dim in range(rank)])


def _readers(program: Program) -> Iterator[_Reader]:
    for node in program.graph.nodes:
        if node.target in LAYERS:
            kind = LAYERS[node.target]
            weight, source = constant(program.module, argument(node, "weight")), argument(node, "input")
            if weight is not None and weight.ndim == kind.spatial + 2:
                dim = 0 if kind.transposed else 1
                groups = 1 if kind.transposed or not kind.spatial else int(argument(node, "groups"))
                name = str(argument(node, "weight").target)
                yield _Reader(name, tuple(weight.shape), source, -1 - kind.spatial, dim, groups)
        elif node.target in PRODUCTS:
            yield from _product(program, node)


def _product(program: Program, node: fx.Node) -> Iterator[_Reader]:
    left, right = (argument(node, name) for name in PRODUCTS[node.target])
    for weight, source, axis, dim in ((right, left, -1, 0), (left, right, -2, 1)):
        tensor = constant(program.module, weight)
        if tensor is not None and tensor.ndim == 2 and source.meta["val"].ndim >= -axis:
            yield _Reader(str(weight.target), tuple(tensor.shape), source, axis, dim)
