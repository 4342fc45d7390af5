"""cut(): the Program without some units. Every tensor is indexed, every constant of an op follows from the labels.

Fake tensors are computed again and must have the sizes that the labels predict: a rule that is wrong about an op is
found here, at the node where it is wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxopt.errors import PassError, where
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, constant, fake_value, same_kind, set_attribute
from fxopt.passes.prune.coordinates import Removal, flat_labels
from fxopt.passes.prune.rule import Shrink, Value
from fxopt.passes.prune.rules import CHANNEL_RULES
from fxopt.passes.prune.symbols import Label, Mask

Kept = dict[str, dict[int, tuple[int, ...]]]


def cut(removal: Removal, by: object) -> Program:
    """Return the Program without what a removal takes. Nothing is checked but sizes.

    Raises PassError, naming the node, where the sizes are not those predicted.
    """
    edit = Edit(removal.found.program, by)
    tensors: dict[int, Tensor] = {}
    for node, labels in removal.found.labels.items():
        if node.op == "get_attr" and removal.cuts(labels):
            _shrink_tensor(removal, edit, node, tensors)
        elif node.op == "call_function" and (removal.cuts(labels) or _reads_cut(removal, node)):
            _shrink_call(removal, edit, node)
            _propagate(removal, edit, node)
    return edit.finish(kept=_compose(removal))


def _reads_cut(removal: Removal, node: fx.Node) -> bool:
    return any(removal.cuts(removal.found.labels[source]) for source in node.all_input_nodes)


def _shrink_tensor(removal: Removal, edit: Edit, node: fx.Node, tensors: dict[int, Tensor]) -> None:
    """Index a tensor; one that is tied under several names stays one."""
    old, labels = constant(removal.found.program.module, node), removal.found.labels[node]
    assert old is not None
    if id(old) not in tensors:
        tensors[id(old)] = same_kind(old, select(old.detach(), [removal.keep(label) for label in flat_labels(labels)]))
    new = tensors[id(old)]
    set_attribute(edit.module, str(node.target), new)
    edit.copies[node].meta["val"] = edit.mode.from_tensor(new.detach(), static_shapes=True)


def select(tensor: Tensor, masks: list[Mask]) -> Tensor:
    """Return the positions of a tensor that stay. A mask repeats where a dimension is longer (a dynamic one)."""
    for dim, mask in enumerate(masks):
        if not mask.all():
            positions = np.flatnonzero(np.resize(mask, tensor.shape[dim]))
            tensor = tensor.index_select(dim, torch.from_numpy(positions))
    return tensor


def _shrink_call(removal: Removal, edit: Edit, node: fx.Node) -> None:
    rule, call = CHANNEL_RULES.get(node.target), removal.found.calls.get(node)
    if rule is not None and call is not None:
        rule.resize(Shrink(call, edit.copies[node], edit, removal.keep))


def _propagate(removal: Removal, edit: Edit, node: fx.Node) -> None:
    copy = edit.copies[node]
    expected = _sizes(removal, node.meta["val"], removal.found.labels[node])
    try:
        copy.meta["val"] = fake_value(copy, edit.mode)
    except Exception as error:
        first = str(error).splitlines()[0]
        raise PassError(f"Without channels, {where(node)} rejects its arguments: {first}. {REPORT}") from error
    actual = _shapes(copy.meta["val"])
    if any(len(label) and not removal.keep(label).any() for label in flat_labels(removal.found.labels[node])):
        raise PassError(f"Without channels, nothing is left of a dimension of {where(node)}.")
    if actual != expected:
        raise PassError(f"Without channels, {where(node)} gives {actual}; its rule predicts {expected}. {REPORT}")


REPORT = "Its row in CHANNEL_RULES is wrong: please report it; RemoveChannels(keep=...) leaves layers alone meanwhile."


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return [_text(size) for size in tuple[Any, ...](value.shape)]
    return [_shapes(item) for item in value] if isinstance(value, (tuple, list)) else None


def _sizes(removal: Removal, value: Any, labels: Value) -> Any:
    if isinstance(value, (tuple, list)):
        several = labels if isinstance(labels, list) else [None] * len(value)
        return [_sizes(removal, *pair) for pair in zip(value, several, strict=True)]
    if not isinstance(value, Tensor):
        return None
    assert isinstance(labels, tuple)
    pairs = zip(tuple[Any, ...](value.shape), labels, strict=True)
    return [str(int(removal.keep(label).sum())) if isinstance(size, int) else _text(size) for size, label in pairs]


def _text(size: Any) -> str:
    """Write a size; a dynamic one that follows from data has another symbol each time it is computed."""
    return str(size) if isinstance(size, int) else "dynamic"


def _compose(removal: Removal) -> Kept:
    """Record which positions of the very first Program each value still has, in its static dimensions."""
    result: Kept = {name: dict(dims) for name, dims in removal.found.program.kept.items()}
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    for node, labels in removal.found.labels.items():
        for dim, label in enumerate(labels if isinstance(labels, tuple) else ()):
            mask = removal.keep(label)
            if not mask.all() and isinstance(node.meta["val"].shape[dim], int):
                kept = _still(result.get(node.name, {}).get(dim), np.flatnonzero(mask))
                result.setdefault(node.name, {})[dim] = known.setdefault(kept, kept)
    return result


def _still(before: tuple[int, ...] | None, positions: Label) -> tuple[int, ...]:
    return tuple(positions.tolist() if before is None else np.array(before)[positions].tolist())
