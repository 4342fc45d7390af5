"""Rows of recurrent ops. Rows of every matrix are (gate, unit); a unit that goes takes its row of every gate along.

All layers and directions share their states' dimension, so they lose the same units.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fxopt.passes.prune.rule import Call, CannotRelate, ChannelRule, Labels
from fxopt.passes.prune.symbols import Label

aten = torch.ops.aten


def _recurrent(gates: int) -> ChannelRule:
    def relate(call: Call) -> list[Labels]:
        states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
        units = call.of(states[0])[-1]
        for state in states:
            call.freeze(call.of(state)[0], because="it counts layers")
            call.unify_all(call.of(states[0])[1:], call.of(state)[1:])
        x = call.labels("input")
        time, batch = (1, 0) if call["batch_first"] else (0, 1)
        call.freeze(x[time], because="steps follow each other along it")
        call.unify(x[batch], call.of(states[0])[1])
        _layers(call, x[-1], units, gates)
        directions = 2 if call["bidirectional"] else 1
        sequence = (*x[:2], np.concatenate([units] * directions))
        return [sequence, *(call.of(state) for state in states)]

    return ChannelRule(relate)


def _layers(call: Call, features: Label, units: Label, gates: int) -> None:
    directions, params = 2 if call["bidirectional"] else 1, list(call["params"])
    each = 4 if call["has_biases"] else 2
    if len(params) != each * directions * call["num_layers"]:
        raise CannotRelate("an LSTM with projections")
    for _ in range(call["num_layers"]):
        for _ in range(directions):
            input_matrix, state_matrix, *biases = (call.of(params.pop(0)) for _ in range(each))
            call.unify(input_matrix[1], features)
            call.unify(state_matrix[1], units)
            for rows in (input_matrix[0], state_matrix[0], *(bias[0] for bias in biases)):
                call.unify(rows, np.tile(units, gates))
        features = np.concatenate([units] * directions)


RECURRENT_RULES: dict[Any, ChannelRule] = {
    aten.lstm.input: _recurrent(4),
    aten.gru.input: _recurrent(3),
    aten.rnn_tanh.input: _recurrent(1),
    aten.rnn_relu.input: _recurrent(1),
}
