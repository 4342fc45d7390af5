"""Rows of recurrent ops. Rows of every matrix are (gate, unit); a unit that goes takes its row of every gate along.

All layers and directions share their states' dimension, so they lose the same units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fxopt.passes.prune.rule import Call, ChannelRule, Labels
from fxopt.passes.prune.symbols import Label

aten = torch.ops.aten


def _recurrent(gates: int) -> ChannelRule:
    def relate(call: Call) -> list[Labels]:
        states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
        hidden, cell = call.of(states[0])[-1], call.of(states[-1])[-1]
        for state in states:
            call.freeze(call.of(state)[0], because="it counts layers")
            call.unify(call.of(states[0])[1], call.of(state)[1])
        x = call.labels("input")
        time, batch = (1, 0) if call["batch_first"] else (0, 1)
        call.freeze(x[time], because="steps follow each other along it")
        call.unify(x[batch], call.of(states[0])[1])
        _layers(call, x[-1], hidden, cell, gates)
        directions = 2 if call["bidirectional"] else 1
        sequence = (*x[:2], np.concatenate([hidden] * directions))
        return [sequence, *(call.of(state) for state in states)]

    return ChannelRule(relate)


def _layers(call: Call, features: Label, hidden: Label, cell: Label, gates: int) -> None:
    """Tie the parameters of all layers. Projections are a matrix more a layer, from its cells to narrower states."""
    directions, params = 2 if call["bidirectional"] else 1, list(call["params"])
    plain = 4 if call["has_biases"] else 2
    each = len(params) // (directions * call["num_layers"])
    if each == plain:
        call.unify(hidden, cell)
    for _ in range(call["num_layers"]):
        for _ in range(directions):
            weights = [call.of(params.pop(0)) for _ in range(each)]
            _one_layer(call, weights[:plain], features, hidden, np.tile(cell, gates))
            for projection in weights[plain:]:
                call.unify(projection[0], hidden)
                call.unify(projection[1], cell)
        features = np.concatenate([hidden] * directions)


def _one_layer(call: Call, weights: Sequence[Labels], features: Label, hidden: Label, rows: Label) -> None:
    input_matrix, state_matrix, *biases = weights
    call.unify(input_matrix[1], features)
    call.unify(state_matrix[1], hidden)
    for label in (input_matrix[0], state_matrix[0], *(bias[0] for bias in biases)):
        call.unify(label, rows)


def _cell(gates: int) -> ChannelRule:
    def relate(call: Call) -> Labels | list[Labels]:
        several = isinstance(call["hx"], (list, tuple))
        states = [call.of(state) for state in (call["hx"] if several else [call["hx"]])]
        x, hidden = call.labels("input"), states[0][-1]
        for state in states:
            call.unify_all(states[0], state)
            call.unify_all(x[:-1], state[:-1])
        given = [call.labels(name) for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call[name] is not None]
        _one_layer(call, given, x[-1], hidden, np.tile(hidden, gates))
        return [*states] if several else states[0]

    return ChannelRule(relate)


RECURRENT_RULES: dict[Any, ChannelRule] = {
    aten.lstm.input: _recurrent(4),
    aten.gru.input: _recurrent(3),
    aten.rnn_tanh.input: _recurrent(1),
    aten.rnn_relu.input: _recurrent(1),
    aten.lstm_cell.default: _cell(4),
    aten.gru_cell.default: _cell(3),
    aten.rnn_tanh_cell.default: _cell(1),
    aten.rnn_relu_cell.default: _cell(1),
}
