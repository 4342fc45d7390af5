"""The recurrent part of QuantizeDynamic: an LSTM becomes one dynamic_lstm a layer, with int8 weights.

Of the recurrent ops, onnxruntime runs only the LSTM in integers. Few hidden units do not pay for the quantization of
the states at each step; `Target.lstm_minimum` is where the gain starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.dynamic_lstm import dynamic_lstm
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import GETITEM, Edit, argument, fake_value
from fxopt.passes.quantize.rows import quantize_rows
from fxopt.target import Target

aten = torch.ops.aten
LSTM = aten.lstm.input
ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
RECURRENT: frozenset[Callable[..., Any]] = frozenset({
    LSTM, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input,
    aten.lstm_cell.default, aten.gru_cell.default, aten.rnn_tanh_cell.default, aten.rnn_relu_cell.default,
})  # fmt: skip


def recurrent_problem(node: fx.Node, target: Target) -> str | None:
    """Say why a recurrent op stays float on a target, or return None for an LSTM that gains in integers."""
    if target.lstm_minimum is None:
        return f"target {target.name} has no integer kernel for recurrent ops"
    if node.target is not LSTM:
        return "onnxruntime has no integer kernel for it"
    x, params = node.args[0], argument(node, "params")
    assert isinstance(x, fx.Node)
    if x.meta["val"].dtype is not torch.float32:
        return f"its input is {str(x.meta['val'].dtype).removeprefix('torch.')}; the kernel takes float32"
    if not all(map(is_constant, params)):
        return "its weights are computed"
    if parameters_each(node) % 2:
        return "its states are projected, which the integer kernel cannot do"
    units = int(params[1].meta["val"].shape[1])
    if units < target.lstm_minimum:
        return f"{units} hidden units; integers gain from {target.lstm_minimum} on"
    return None


def quantize_lstm(edit: Edit, node: fx.Node, stored: dict[tuple[str, ...], fx.Node], weight_max: int) -> None:
    """Replace an LSTM by one dynamic_lstm a layer; the last one keeps the node's name.

    `stored` remembers the constants made, for a module that is called more than once; `weight_max` is the largest
    integer weight. Dropout between layers is for training, and is left out.
    """
    layers, directions = int(argument(node, "num_layers")), 2 if argument(node, "bidirectional") else 1
    batch_first, hx, params = bool(argument(node, "batch_first")), argument(node, "hx"), list(argument(node, "params"))
    each = parameters_each(node)
    x: Any = node.args[0]
    if batch_first:
        x = edit.call(aten.transpose.int, x, 0, 1, before=node, name=f"{node.name}_time_first")
    lasts: dict[int, list[fx.Node]] = {1: [], 2: []}
    for layer in range(layers):
        begin = layer * directions
        own = [params[each * (begin + d) : each * (begin + d + 1)] for d in range(directions)]
        states = [_states_of(edit, node, state, begin, directions, layers) for state in hx]
        arguments = (x, *states, *_layer_constants(edit, node, own, stored, weight_max))
        if layer == layers - 1:
            node.target, node.args, node.kwargs = dynamic_lstm, arguments, {}
            node.meta["val"] = fake_value(node, edit.mode)
            break
        made = edit.call(dynamic_lstm, *arguments, before=node, name=f"{node.name}_layer_{layer}")
        x = edit.call(GETITEM, made, 0, before=node)
        for index, values in lasts.items():
            values.append(edit.call(GETITEM, made, index, before=node))
    _fit_results(edit, node, batch_first, lasts)


def parameters_each(node: fx.Node) -> int:
    """Count the parameters of one layer and direction: two weights, two biases or none, a projection or none."""
    directions = 2 if argument(node, "bidirectional") else 1
    return len(argument(node, "params")) // (int(argument(node, "num_layers")) * directions)


def _states_of(edit: Edit, node: fx.Node, state: fx.Node, begin: int, directions: int, layers: int) -> fx.Node | None:
    """Return the initial states of one layer; None for zeros."""
    value = edit.constant(state)
    if state.target in ZEROS or (value is not None and not bool(value.any())):
        return None
    if layers == 1:
        return state
    return edit.call(aten.slice.Tensor, state, 0, begin, begin + directions, before=node)


def _layer_constants(
    edit: Edit,
    node: fx.Node,
    directions: Sequence[Sequence[fx.Node]],
    stored: dict[tuple[str, ...], fx.Node],
    weight_max: int,
) -> list[fx.Node | None]:
    """Return the weights, scales and bias of a layer, given its float parameters by direction."""

    def add(purpose: str, sources: Sequence[fx.Node], value: Tensor) -> fx.Node:
        key = (purpose, *(str(source.target) for source in sources))
        if key not in stored:
            stored[key] = edit.add_constant(f"{key[1]}_{purpose}", value, before=node)
        return stored[key]

    integers, scales = [], []
    for sources in zip(*(own[:2] for own in directions), strict=True):
        rounded, steps = zip(*(quantize_rows(_tensor(edit, source), weight_max) for source in sources), strict=True)
        integers.append(add("int8", sources, torch.stack(rounded)))
        scales.append(add("scale", sources, torch.stack(steps)))
    if len(directions[0]) < 4:
        return [*integers, *scales, None]
    pairs = [own[2:4] for own in directions]
    bias = torch.stack([_tensor(edit, first) + _tensor(edit, second) for first, second in pairs])
    return [*integers, *scales, add("sum", [source for pair in pairs for source in pair], bias)]


def _tensor(edit: Edit, node: fx.Node) -> Tensor:
    value = edit.constant(node)
    assert value is not None
    return value.detach()


def _fit_results(edit: Edit, node: fx.Node, batch_first: bool, lasts: dict[int, list[fx.Node]]) -> None:
    """Let what reads the results of the former LSTM read those of the last layer, in the shape they had."""
    users = sorted(node.users, key=lambda user: str(user.args[1]))
    last = node
    for user in users:  # all next to the node, as torch.export writes them
        last.append(user)
        last = user
    following = last.next
    for user in users:
        index = user.args[1]
        assert isinstance(index, int)
        user.meta["val"] = node.meta["val"][index]
        if index == 0 and batch_first:
            result = edit.call(aten.transpose.int, user, 0, 1, before=following, like=node)
        elif index and lasts[index]:
            result = edit.call(aten.cat.default, [*lasts[index], user], before=following, like=node)
        else:
            continue
        edit.replace(user, result)
