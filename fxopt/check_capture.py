"""Is the captured Program the model? Both are run, on the example inputs and at another size of what is dynamic."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxopt.errors import ValidationError
from fxopt.export.compare import compare_outputs
from fxopt.export.sweep import dimension_sizes, reference_outputs, resize
from fxopt.graph.program import Program

CAPTURE_TOLERANCE = 1e-4


def check_capture(model: nn.Module, program: Program, inputs: tuple[Tensor, ...]) -> None:
    """Raise ValidationError unless the Program returns what the model does, for its inputs and at other sizes.

    The bound is 1e-4 of each output's range. Sizes that the model itself refuses are left out.
    """
    _compare_with_model(program, _eager_outputs(model, program, inputs), inputs, {})
    base = dimension_sizes(program, inputs)
    for other in ({name: 2 * size + 1 for name, size in base.items()}, {name: size + 1 for name, size in base.items()}):
        tensors = resize(program, inputs, other)
        try:
            expected = _eager_outputs(model, program, tensors)
        except Exception:
            continue
        return _compare_with_model(program, expected, tensors, other)


def _eager_outputs(model: nn.Module, program: Program, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Run the model itself in inference mode; returns its tensor outputs. The model is left as it was."""
    modes = [(module, module.training) for module in model.modules()]
    args, kwargs = program.call_arguments(tensors)
    model.eval()
    try:
        with torch.no_grad():
            return [leaf for leaf in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
    finally:
        for module, training in modes:
            module.training = training


def _compare_with_model(
    program: Program, expected: list[Tensor], inputs: tuple[Tensor, ...], sizes: Mapping[str, int]
) -> None:
    names = [spec.name for spec in program.outputs if spec is not None]
    at = f" at {', '.join(f'{name}={size}' for name, size in sizes.items())}" if sizes else ""
    for error in compare_outputs(names, expected, reference_outputs(program, inputs)):
        if error.relative > CAPTURE_TOLERANCE:
            raise ValidationError(
                f"The captured Program does not agree with the model{at}: output '{error.name}' is off by "
                f"{error.max_error:.3g} ({error.relative:.2g} of its range). A model that draws random numbers, keeps "
                "state, or computes Python numbers from sizes (int(n / 2)) does that; name fewer dynamic dimensions."
            )
