"""Torch-Pruning on one model of a zoo, by the criterion that fxopt's own removal of channels is held to.

Magnitude pruning of all that its dependency graph finds, the same share of each layer, with one thing told: the layers
that make the outputs (fxopt finds them itself). The result is good if it runs, keeps the shapes of its outputs,
computes what the original does with the removed channels at zero for all that reads them, and onnxruntime agrees on its
file. Where it has cut layer norms the second is not checked: they are other functions then.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.zoo_models import ZooModel
from benchmarks.zoo_models.outcome import Outcome
from fxopt.errors import FxoptError
from fxopt.export.session import Session
from fxopt.graph.capture import call_of, capture
from fxopt.graph.cost import macs_by_node
from fxopt.passes.prune.masked import relative_error

BOUND = 1e-4  # of an output's range
READERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def run_torch_pruning(model: ZooModel, outcome: Outcome) -> None:
    """Prune a model with Torch-Pruning so that about 1 - ratio of its operations are left; raises where it fails."""
    import torch_pruning  # a peer: needed for this task alone

    with outcome.timed("build"):
        module = model.build()
    args, kwargs = call_of(model.inputs(2))
    example: Any = kwargs or args
    expected = _outputs(module, args, kwargs)
    dense = copy.deepcopy(module)
    with outcome.timed("grouping"):
        graph = torch_pruning.DependencyGraph().build_dependency(module, example)
        groups = list(graph.get_all_groups(ignored_layers=_last_layers(module, expected)))
    if not groups:
        raise FxoptError("no groups were found")
    with outcome.timed("prune"):
        pruner = torch_pruning.pruner.BasePruner(
            module,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=1 - math.sqrt(1 - outcome.ratio),
            ignored_layers=_last_layers(module, expected),
        )
        _prune(pruner, module, dense)
        averaged = _cut_norms(module, dense)
    with outcome.timed("check"):
        actual = _outputs(module, args, kwargs)
        if [value.shape for value in actual] != [value.shape for value in expected]:
            raise FxoptError("the outputs have other shapes")
        if averaged:
            outcome.notes.append("layer or group norms were cut: not compared with the masked original")
        else:
            pairs = zip(_outputs(dense, args, kwargs), actual, strict=True)
            outcome.max_error = max(relative_error(*pair) for pair in pairs)
            if not outcome.max_error <= BOUND:
                raise FxoptError(f"{outcome.max_error:.1e} of an output's range away from the masked original")
    outcome.macs_left = _macs(module, model) / _macs(model.build(), model)
    with outcome.timed("export"):
        _check_file(module, args, kwargs, actual)
    outcome.ok, outcome.stage = True, "done"


def _outputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, Tensor)]


def _last_layers(module: nn.Module, outputs: list[Tensor]) -> Sequence[nn.Module]:
    """Return the layers that are as wide as an output: pruned, they would change its shape."""
    widths = {size for value in outputs for size in value.shape[1:]}
    layers = [m for m in module.modules() if isinstance(m, READERS)]
    wide = [m for m in layers if (m.out_features if isinstance(m, nn.Linear) else m.out_channels) in widths]
    return wide[-max(1, len(outputs)) :]


def _cut_norms(module: nn.Module, dense: nn.Module) -> bool:
    """Say whether any norm over channels has fewer of them now."""
    norms = (name for name, layer in dense.named_modules() if "Norm" in type(layer).__name__)
    norms = (name for name in norms if not isinstance(dense.get_submodule(name), nn.modules.batchnorm._BatchNorm))
    pairs = ((dense.get_submodule(name).parameters(), module.get_submodule(name).parameters()) for name in norms)
    return any(old.shape != new.shape for olds, news in pairs for old, new in zip(olds, news, strict=True))


def _prune(pruner: Any, module: nn.Module, dense: nn.Module) -> None:
    """Prune group by group, putting what the readers read of it at zero in `dense`."""
    names = {layer: name for name, layer in module.named_modules()}
    alive: dict[str, list[int]] = {}
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            layer, name = dependency.target.module, names.get(dependency.target.module)
            if name is None or not isinstance(layer, READERS) or not _cuts_inputs(dependency):
                continue
            weight = dense.get_parameter(f"{name}.weight").data
            groups = int(getattr(dense.get_submodule(name), "groups", 1))
            left = alive.setdefault(name, list(range(groups * weight.shape[1])))
            for number, channel in (divmod(left[i], weight.shape[1]) for i in indices):
                weight.chunk(groups)[number][:, channel] = 0
            gone = set(indices)
            alive[name] = [position for i, position in enumerate(left) if i not in gone]
        group.prune()


def _cuts_inputs(dependency: Any) -> bool:
    return bool(dependency.handler.__name__ == "prune_in_channels")


def _macs(module: nn.Module, model: ZooModel) -> int:
    return sum(macs_by_node(capture(module, model.inputs(2))).values())


def _check_file(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], expected: list[Tensor]) -> None:
    with tempfile.TemporaryDirectory(prefix="fxopt-zoo-") as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, args, path, kwargs=kwargs, dynamo=True, verbose=False)
        actual = Session(path)(*_tensors(args, kwargs))
    error = max(relative_error(left, right) for left, right in zip(expected, actual, strict=True))
    if not error <= BOUND:
        raise FxoptError(f"onnxruntime is {error:.1e} of an output's range away from the pruned model")


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
