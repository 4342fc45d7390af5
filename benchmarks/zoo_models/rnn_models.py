"""Recurrent networks: the layers alone in each of their forms, and the models that are made of them."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_models.images import structured_images
from benchmarks.zoo_models.model import Inputs, ZooModel
from benchmarks.zoo_models.preparation import calibrate_batch_norm, seeded

FEATURES = 12
WIDTH = 96  # from which on integers gain in an LSTM
VOCABULARY = 500
CLASSES = 10
TIMES = (9, 14)  # of the example inputs, and of the other inputs


class TextClassifier(nn.Module):
    """Token ids (batch, time) -> class scores (batch, CLASSES), by the last hidden states of an LSTM."""

    def __init__(self, bidirectional: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)
        self.lstm = nn.LSTM(FEATURES, WIDTH, num_layers=2, batch_first=True, dropout=0.2, bidirectional=bidirectional)
        self.classifier = nn.Linear(2 * WIDTH if bidirectional else WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Score every class."""
        _, (hidden, _) = self.lstm(self.embedding(tokens))
        last = torch.cat([hidden[-2], hidden[-1]], dim=-1) if self.lstm.bidirectional else hidden[-1]
        scores: Tensor = self.classifier(last)
        return scores


class Tagger(nn.Module):
    """Token ids (batch, time) -> log probabilities of a tag for every token (batch, time, CLASSES)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)
        self.gru = nn.GRU(FEATURES, WIDTH, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(2 * WIDTH)
        self.classifier = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Score every tag of every token."""
        states, _ = self.gru(self.embedding(tokens))
        return self.classifier(self.norm(states)).log_softmax(dim=-1)  # type: ignore[no-any-return]


class SpeechRecogniser(nn.Module):
    """Spectrogram (batch, 1, FEATURES, frames) -> CTC log probabilities (frames / 2, batch, CLASSES)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, (5, 5), stride=(2, 2), padding=(2, 2), bias=False),
            nn.BatchNorm2d(16),
            nn.Hardtanh(0, 20),
            nn.Conv2d(16, 16, (3, 5), padding=(1, 2), bias=False),
            nn.BatchNorm2d(16),
            nn.Hardtanh(0, 20),
        )
        self.gru = nn.GRU(16 * FEATURES // 2, WIDTH, num_layers=2, bidirectional=True)
        self.classifier = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Score every symbol at every second frame."""
        states, _ = self.gru(self.convolutions(spectrogram).flatten(1, 2).permute(2, 0, 1))
        return self.classifier(states).log_softmax(dim=-1)  # type: ignore[no-any-return]


class WaveformClassifier(nn.Module):
    """Samples (batch, 1, samples) -> class scores (batch, CLASSES): 1-d convolutions, then an LSTM's mean state."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(1, 16, 8, stride=4, padding=2),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Conv1d(16, FEATURES, 5, stride=2, padding=2),
            nn.ReLU(),
        )
        self.lstm = nn.LSTM(FEATURES, WIDTH, batch_first=True)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, samples: Tensor) -> Tensor:
        """Score every class."""
        states, _ = self.lstm(self.convolutions(samples).transpose(1, 2))
        scores: Tensor = self.classifier(states.mean(dim=1))
        return scores


class Translator(nn.Module):
    """Source and target ids (batch, time), (batch, target time) -> scores of the next target token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, FEATURES)
        self.encoder = nn.GRU(FEATURES, WIDTH, batch_first=True)
        self.decoder = nn.GRU(FEATURES, WIDTH, batch_first=True)
        self.classifier = nn.Linear(2 * WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Decode from the encoder's last state, with dot-product attention to all of its states."""
        memory, last = self.encoder(self.embedding(source))
        states, _ = self.decoder(self.embedding(target), last)
        context = (states @ memory.transpose(1, 2)).softmax(dim=-1) @ memory
        scores: Tensor = self.classifier(torch.cat([states, context], dim=-1))
        return scores


class StatefulLstm(nn.Module):
    """An LSTM that takes its state and gives back the next one, for use in a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, WIDTH, batch_first=True)

    def forward(self, features: Tensor, hidden: Tensor, cell: Tensor) -> dict[str, Tensor]:
        """Run on from a state: features (batch, time, FEATURES), hidden and cell (1, batch, WIDTH)."""
        states, (hidden, cell) = self.lstm(features, (hidden, cell))
        return {"states": states, "hidden": hidden, "cell": cell}


class Scored(nn.Module):
    """Features (batch, time, FEATURES), or time first -> scores at every step: a recurrent layer and a linear head."""

    def __init__(self, make: Callable[[], nn.RNNBase]) -> None:
        super().__init__()
        self.layer = make()
        width = self.layer.proj_size or self.layer.hidden_size
        self.classifier = nn.Linear(2 * width if self.layer.bidirectional else width, CLASSES)

    def forward(self, input: Tensor) -> Tensor:
        """Score every class at every step."""
        scores: Tensor = self.classifier(self.layer(input)[0])
        return scores


class UnrolledCells(nn.Module):
    """Features (batch, TIMES[0], FEATURES) -> scores (batch, CLASSES), by an LSTM cell and a GRU cell, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(FEATURES, WIDTH)
        self.gru = nn.GRUCell(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        """Score every class after the last step."""
        hidden = cell = state = features.new_zeros(features.shape[0], WIDTH)
        for step in features.unbind(1):
            hidden, cell = self.lstm(step, (hidden, cell))
            state = self.gru(hidden, state)
        scores: Tensor = self.classifier(state)
        return scores


def _features(batch: int, other: bool) -> tuple[Tensor, ...]:
    return (structured_images(batch, 1, TIMES[other], FEATURES, seed=int(other))[:, 0],)


def _features_time_first(batch: int, other: bool) -> tuple[Tensor, ...]:
    return (_features(batch, other)[0].transpose(0, 1).contiguous(),)


def _features_fixed_time(batch: int, other: bool) -> tuple[Tensor, ...]:
    return (structured_images(batch, 1, TIMES[0], FEATURES, seed=int(other))[:, 0],)


def _features_and_state(batch: int, other: bool) -> tuple[Tensor, ...]:
    state = torch.randn(2, 1, batch, WIDTH, generator=torch.Generator().manual_seed(int(other))).tanh()
    return (*_features(batch, other), state[0], state[1])


def _tokens(batch: int, other: bool) -> tuple[Tensor, ...]:
    return (torch.randint(VOCABULARY, (batch, TIMES[other]), generator=torch.Generator().manual_seed(int(other))),)


def _token_pair(batch: int, other: bool) -> tuple[Tensor, ...]:
    target = torch.randint(VOCABULARY, (batch, TIMES[other] - 4), generator=torch.Generator().manual_seed(2 + other))
    return (*_tokens(batch, other), target)


def _spectrogram(batch: int, other: bool) -> tuple[Tensor, ...]:
    return (structured_images(batch, 1, FEATURES, 8 * TIMES[other], seed=int(other)),)


def _samples(batch: int, other: bool) -> tuple[Tensor, ...]:
    return (structured_images(batch, 1, 1, 64 * TIMES[other], seed=int(other))[:, 0],)


@dataclass(frozen=True)
class Row:
    """One recurrent network: how it is made, (batch, other) -> its inputs, and the inputs' named dimensions."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int, bool], tuple[Tensor, ...]]
    dynamic: dict[str, dict[int, str]]


def _layer(layer: Callable[..., nn.Module], **arguments: Any) -> Row:
    """Describe a recurrent layer alone, of FEATURES inputs and WIDTH states; time comes first by default."""
    make = functools.partial(layer, FEATURES, WIDTH, **arguments)
    if arguments.get("batch_first"):
        return Row(make, _features, {"input": {0: "batch", 1: "time"}})
    return Row(make, _features_time_first, {"input": {0: "time", 1: "batch"}})


TOKENS = {"tokens": {0: "batch", 1: "time"}}
MODELS: Mapping[str, Row] = {
    "lstm": _layer(nn.LSTM),
    "lstm-batch-first": _layer(nn.LSTM, batch_first=True),
    "lstm-bidirectional": _layer(nn.LSTM, bidirectional=True),
    "lstm-stacked": _layer(nn.LSTM, num_layers=3, batch_first=True, dropout=0.1),
    "lstm-stacked-bidirectional": _layer(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True),
    "lstm-without-bias": _layer(nn.LSTM, bias=False, batch_first=True),
    "lstm-projected": _layer(nn.LSTM, proj_size=16, batch_first=True),
    "lstm-stateful": Row(
        StatefulLstm,
        _features_and_state,
        {"features": {0: "batch", 1: "time"}, "hidden": {1: "batch"}, "cell": {1: "batch"}},
    ),
    "gru": _layer(nn.GRU),
    "gru-batch-first": _layer(nn.GRU, batch_first=True),
    "gru-stacked-bidirectional": _layer(nn.GRU, num_layers=2, bidirectional=True),
    "gru-without-bias": _layer(nn.GRU, bias=False, batch_first=True),
    "rnn-tanh": _layer(nn.RNN, nonlinearity="tanh", batch_first=True),
    "rnn-relu-bidirectional": _layer(nn.RNN, nonlinearity="relu", num_layers=2, bidirectional=True),
    "cells-unrolled": Row(UnrolledCells, _features_fixed_time, {"features": {0: "batch"}}),
    "text-classifier": Row(functools.partial(TextClassifier, bidirectional=False), _tokens, TOKENS),
    "text-classifier-bidirectional": Row(functools.partial(TextClassifier, bidirectional=True), _tokens, TOKENS),
    "tagger": Row(Tagger, _tokens, TOKENS),
    "translator": Row(
        Translator, _token_pair, {"source": {0: "batch", 1: "time"}, "target": {0: "batch", 1: "target_time"}}
    ),
    "speech-recogniser": Row(SpeechRecogniser, _spectrogram, {"spectrogram": {0: "batch", 3: "frames"}}),
    "waveform-classifier": Row(WaveformClassifier, _samples, {"samples": {0: "batch", 2: "samples"}}),
}


def rnn_models(scored: bool = False) -> tuple[ZooModel, ...]:
    """List the recurrent layers, then the models made of them. `scored`: the layers have a head each.

    The states of a layer alone are outputs, so that nothing of it can be removed.
    """
    rows = {name: _with_head(row) if scored and _is_layer(row) else row for name, row in MODELS.items()}
    return tuple(
        ZooModel(
            name=name,
            family=name.partition("-")[0],
            build=functools.partial(_build, row),
            inputs=functools.partial(_inputs, row, other=False),
            dynamic=row.dynamic,
            other_inputs=functools.partial(_inputs, row, other=True),
            is_cnn=False,
        )
        for name, row in rows.items()
    )


def _is_layer(row: Row) -> bool:
    return isinstance(row.make, functools.partial) and row.make.func in (nn.LSTM, nn.GRU, nn.RNN)


def _with_head(row: Row) -> Row:
    return Row(functools.partial(Scored, row.make), row.inputs, row.dynamic)  # type: ignore[arg-type]


def _inputs(row: Row, batch: int, other: bool) -> Inputs:
    return row.inputs(batch, other)


def _build(row: Row) -> nn.Module:
    return calibrate_batch_norm(seeded(row.make), row.inputs(32, True), row.inputs(8, False))
