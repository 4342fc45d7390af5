"""Other sizes for the dynamic dimensions: what an example proves for one size is tried at more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxopt.graph.integer import find_kernels, run_integer
from fxopt.graph.interpret import run
from fxopt.graph.memory import return_free_memory
from fxopt.graph.program import Program


@dataclass(frozen=True, eq=False)
class Run:
    """Inputs at some sizes of the dynamic dimensions, with what the Program returns for them.

    `outputs` are those of integer kernels, `unfused` those of floats between the rounding points. A Program without
    integer kernels has the same list for both.
    """

    sizes: Mapping[str, int]
    inputs: tuple[Tensor, ...]
    outputs: list[Tensor]
    unfused: list[Tensor]

    @property
    def label(self) -> str:
        """Spell the sizes for a message."""
        return ", ".join(f"{name}={size}" for name, size in self.sizes.items()) or "the given inputs"


def dimension_sizes(program: Program, inputs: Sequence[Tensor]) -> dict[str, int]:
    """Return the size of each named dynamic dimension in these inputs."""
    sizes: dict[str, int] = {}
    for spec, tensor in zip(program.inputs, inputs, strict=True):
        for expected, size in zip(spec.shape, tensor.shape, strict=True):
            if isinstance(expected, str) and expected.isidentifier():
                sizes.setdefault(expected, size)
    return sizes


def resize(program: Program, inputs: Sequence[Tensor], sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Repeat or cut the inputs along their dynamic dimensions to the given sizes."""
    result = []
    for spec, tensor in zip(program.inputs, inputs, strict=True):
        for dim, expected in enumerate(spec.shape):
            if isinstance(expected, str) and expected in sizes and tensor.shape[dim]:
                index = torch.arange(sizes[expected]) % tensor.shape[dim]
                tensor = tensor.index_select(dim, index)
        result.append(tensor)
    return tuple(result)


def sweep_inputs(program: Program, inputs: tuple[Tensor, ...]) -> tuple[list[Run], list[str]]:
    """Run the Program on the given inputs and with each dynamic dimension at other sizes: 1 (or 2) and one more.

    Returns the runs and, in words, the sizes that the Program itself refuses.
    """
    base = dimension_sizes(program, inputs)
    others = {name: {1 if size > 1 else 2, size + 1} for name, size in base.items()}
    wanted = [base, *({**base, name: other} for name, sizes in others.items() for other in sorted(sizes))]
    quantized = bool(find_kernels(program))
    runs: list[Run] = []
    skipped: list[str] = []
    for sizes in wanted:
        resized = resize(program, inputs, sizes) if sizes != base else inputs
        try:
            outputs = reference_outputs(program, resized)
            return_free_memory()
            unfused = _present(program, run(program, resized)) if quantized else outputs
        except Exception as error:
            if sizes == base:
                raise
            skipped.append(f"{sizes}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            continue
        return_free_memory()
        runs.append(Run(sizes, resized, outputs, unfused))
    return runs, skipped


def reference_outputs(
    program: Program,
    inputs: Sequence[Tensor],
    *,
    precise: bool = False,
    jitter: float = 0.0,
    seed: int = 0,
    fused: bool = True,
) -> list[Tensor]:
    """Run a Program, in exact integers where it is quantized; returns its outputs in the order of the ONNX outputs.

    With `precise`, what is not integer is computed in float64, and off by a random part of up to `jitter`. Unless
    `fused`, that is all of it but the roundings.
    """
    values = run_integer(program, inputs, precise=precise, jitter=jitter, seed=seed, fused=fused)
    return _present(program, values)


def _present(program: Program, values: Sequence[Any]) -> list[Tensor]:
    return [value for value, spec in zip(values, program.outputs, strict=True) if spec is not None]
