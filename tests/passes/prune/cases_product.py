"""Cases of ops that multiply and sum: convolutions, products, attention, recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.passes.prune.checks import Case, case

IMAGE = torch.randn(2, 3, 8, 8)
ROWS = torch.randn(2, 5, 6)  # [batch, tokens, features]
LINE = torch.randn(2, 3, 12)


def _two_layers(m: Any, x: Tensor) -> Any:
    return m.second(torch.relu(m.first(x)))


def _three_layers(m: Any, x: Tensor) -> Any:
    return m.third(torch.relu(m.second(torch.relu(m.first(x)))))


def _attend(m: Any, x: Tensor, heads: int = 4, key_heads: int = 4, gqa: bool = False) -> Any:
    q, k, v = m.q(x), m.k(x), m.v(x)
    q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
    k, v = (y.unflatten(-1, (key_heads, -1)).transpose(1, 2) for y in (k, v))
    y = functional.scaled_dot_product_attention(q, k, v, enable_gqa=gqa)
    return m.o(y.transpose(1, 2).flatten(2))


def _repeated_keys(m: Any, x: Tensor) -> Any:
    """Grouped queries as transformers writes them: keys and values are expanded and reshaped."""
    q = m.q(x).view(2, 5, 4, 8).transpose(1, 2)
    k, v = (y.view(2, 5, 2, 8).transpose(1, 2) for y in (m.k(x), m.v(x)))
    k, v = (y[:, :, None].expand(2, 2, 2, 5, 8).reshape(2, 4, 5, 8) for y in (k, v))
    return m.o(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 32))


def _fused_qkv(m: Any, x: Tensor) -> Any:
    q, k, v = m.qkv(x).reshape(2, 5, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
    return m.o((weights @ v).transpose(1, 2).reshape(2, 5, 32))


def _rotary(m: Any, x: Tensor) -> Any:
    """Rotary positions: half of the head dimension is turned against the other."""
    q = m.q(x).view(2, 5, 4, 8).transpose(1, 2)
    k = m.k(x).view(2, 5, 4, 8).transpose(1, 2)
    q, k = (y * m.cos + torch.cat([-y[..., 4:], y[..., :4]], -1) * m.sin for y in (q, k))
    return q @ k.transpose(-2, -1)


def _scaled_bias(m: Any, x: Tensor) -> Any:
    """A bias a head, looked up in a table."""
    q, k = (y.view(2, 5, 4, 8).transpose(1, 2) for y in (m.q(x), m.k(x)))
    bias = m.table[torch.arange(5)[:, None] - torch.arange(5)[None, :] + 4].permute(2, 0, 1)
    return m.o(functional.scaled_dot_product_attention(q, k, q, attn_mask=bias).transpose(1, 2).flatten(2))


def _linears(**sizes: tuple[int, int]) -> dict[str, Any]:
    return {name: nn.Linear(*size) for name, size in sizes.items()}


class Lstm(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(6, 8, **options)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.rnn(x)[0]
        return result


def _recurrent(kind: Any, name: str | None = None, **options: Any) -> Case:
    wide = 16 if options.get("bidirectional") else 8
    if name:
        options["nonlinearity"] = name
    return case(lambda m, x: m.head(m.rnn(x)), ROWS, widths=[8], rnn=Lstm(kind, **options), head=nn.Linear(wide, 3))


class Cells(nn.Module):
    """A cell, two steps from a state of zeros."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(x.shape[0], 8)
        pair = isinstance(self.cell, nn.LSTMCell)
        state: Any = (zeros, zeros) if pair else zeros
        for step in (x[:, 0], x[:, 1]):
            state = self.cell(step, state)
        hidden: Tensor = state[0] + state[1] if pair else state
        return hidden


def _unrolled(cell: nn.Module) -> Case:
    return case(lambda m, x: m.head(m.cells(x)), ROWS, widths=[8], cells=Cells(cell), head=nn.Linear(8, 3))


torch.manual_seed(0)
ATTENTION = _linears(q=(6, 32), k=(6, 32), v=(6, 32), o=(32, 6))
GROUPED = _linears(q=(6, 32), k=(6, 16), v=(6, 16), o=(32, 6))

PRODUCT_CASES: dict[str, Case] = {
    "conv2d": case(_two_layers, IMAGE, widths=[16], first=nn.Conv2d(3, 16, 3), second=nn.Conv2d(16, 4, 3)),
    "conv2d_same": case(
        _two_layers, IMAGE, widths=[8], first=nn.Conv2d(3, 8, 3, padding="same"), second=nn.Conv2d(8, 4, 1)
    ),
    "conv1d": case(_two_layers, LINE, widths=[8], first=nn.Conv1d(3, 8, 3), second=nn.Conv1d(8, 4, 3)),
    "conv1d_same": case(
        _two_layers, LINE, widths=[8], first=nn.Conv1d(3, 8, 3, padding="same"), second=nn.Conv1d(8, 4, 3)
    ),
    "conv3d": case(
        _two_layers, torch.randn(1, 2, 4, 4, 4), widths=[8], first=nn.Conv3d(2, 8, 2), second=nn.Conv3d(8, 3, 2)
    ),
    "conv3d_same": case(
        _two_layers,
        torch.randn(1, 2, 4, 4, 4),
        widths=[8],
        first=nn.Conv3d(2, 8, 3, padding="same"),
        second=nn.Conv3d(8, 3, 2),
    ),
    "depthwise": case(
        _three_layers,
        IMAGE,
        widths=[8],
        first=nn.Conv2d(3, 8, 1),
        second=nn.Conv2d(8, 8, 3, groups=8),
        third=nn.Conv2d(8, 4, 1),
    ),
    "depthwise_with_two_outputs_a_channel": case(
        _three_layers,
        IMAGE,
        widths=[8, 2],
        first=nn.Conv2d(3, 8, 1),
        second=nn.Conv2d(8, 16, 3, groups=8),
        third=nn.Conv2d(16, 4, 1),
    ),
    "grouped": case(  # a group; a position in every group, before and after
        _three_layers,
        IMAGE,
        widths=[4, 4, 2],
        first=nn.Conv2d(3, 16, 1),
        second=nn.Conv2d(16, 8, 3, groups=4),
        third=nn.Conv2d(8, 4, 1),
    ),
    "conv_transpose1d": case(
        _two_layers, LINE, widths=[8], first=nn.ConvTranspose1d(3, 8, 2), second=nn.ConvTranspose1d(8, 4, 2)
    ),
    "conv_transpose2d": case(
        _two_layers, IMAGE, widths=[8], first=nn.ConvTranspose2d(3, 8, 2), second=nn.ConvTranspose2d(8, 4, 2)
    ),
    "conv_transpose3d": case(
        _two_layers,
        torch.randn(1, 2, 3, 3, 3),
        widths=[8],
        first=nn.ConvTranspose3d(2, 8, 2),
        second=nn.ConvTranspose3d(8, 4, 2),
    ),
    "conv_transpose2d_grouped": case(
        _three_layers,
        IMAGE,
        widths=[4, 4, 2],
        first=nn.Conv2d(3, 16, 1),
        second=nn.ConvTranspose2d(16, 8, 2, groups=4),
        third=nn.Conv2d(8, 4, 1),
    ),
    "linear": case(_two_layers, ROWS, widths=[16], first=nn.Linear(6, 16), second=nn.Linear(16, 4)),
    "matmul": case(lambda m, x: (x @ m.a).relu() @ m.b, ROWS, widths=[9], a=torch.randn(6, 9), b=torch.randn(9, 2)),
    "mm": case(
        lambda m, x: torch.mm(torch.mm(x[0], m.a), m.b), ROWS, widths=[9], a=torch.randn(6, 9), b=torch.randn(9, 2)
    ),
    "bmm": case(
        lambda m, x: torch.bmm(torch.bmm(x, m.a), m.b),
        ROWS,
        widths=[9],
        a=torch.randn(2, 6, 9),
        b=torch.randn(2, 9, 2),
    ),
    "mv": case(lambda m, x: torch.mv(x[0] @ m.a, m.b), ROWS, widths=[9], a=torch.randn(6, 9), b=torch.randn(9)),
    "dot": case(lambda m, x: torch.dot(x[0, 0] @ m.a, m.b), ROWS, widths=[9], a=torch.randn(6, 9), b=torch.randn(9)),
    "addmm": case(
        lambda m, x: torch.addmm(m.c, x[0], m.a).relu() @ m.b,
        ROWS,
        widths=[9],
        a=torch.randn(6, 9),
        b=torch.randn(9, 2),
        c=torch.randn(9),
    ),
    "baddbmm": case(
        lambda m, x: torch.baddbmm(m.c, x, m.a) @ m.b,
        ROWS,
        widths=[9],
        a=torch.randn(2, 6, 9),
        b=torch.randn(9, 2),
        c=torch.randn(2, 1, 9),
    ),
    "outer": case(
        lambda m, x: x @ torch.outer(m.a, m.b) @ m.c,
        ROWS,
        widths=[9],
        a=torch.randn(6),
        b=torch.randn(9),
        c=torch.randn(9, 2),
    ),
    "einsum": case(
        lambda m, x: torch.einsum("btf,hf,hg->btg", x, m.a, m.b),
        ROWS,
        widths=[9],
        a=torch.randn(9, 6),
        b=torch.randn(9, 2),
    ),
    "attention": case(_attend, ROWS, widths=[8, 8, 4], **ATTENTION),
    "grouped_queries": case(  # dimensions of keys, of values; keys with their queries; a query of every key
        lambda m, x: _attend(m, x, 4, 2, gqa=True), ROWS, widths=[8, 8, 2, 2], **GROUPED
    ),
    "grouped_queries_expanded": case(_repeated_keys, ROWS, widths=[8, 8, 2, 2], **GROUPED),
    "fused_qkv": case(_fused_qkv, ROWS, widths=[8, 4], **_linears(qkv=(6, 96), o=(32, 6))),
    "rotary": case(  # heads stay: they are an output
        _rotary, ROWS, widths=[4], cos=torch.randn(5, 8), sin=torch.randn(5, 8), **_linears(q=(6, 32), k=(6, 32))
    ),
    "relative_bias": case(
        _scaled_bias,
        ROWS,
        widths=[8, 4],
        table=nn.Parameter(torch.randn(9, 4)),
        **_linears(q=(6, 32), k=(6, 32), o=(32, 6)),
    ),
    "embedding": case(
        lambda m, x: m.head(m.table(x)),
        torch.tensor([[1, 2]]),
        widths=[8],
        table=nn.Embedding(5, 8),
        head=nn.Linear(8, 3),
    ),
    "tied_head": case(
        lambda m, x: functional.linear(torch.relu(m.mix(m.table(x))), m.table.weight),
        torch.tensor([[1, 2]]),
        widths=[8],
        table=nn.Embedding(5, 8),
        mix=nn.Linear(8, 8),
    ),
    "lstm": _recurrent(nn.LSTM, batch_first=True),
    "lstm_stack": _recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm_projected": case(
        lambda m, x: m.head(m.rnn(x)),
        ROWS,
        widths=[8, 4],
        rnn=Lstm(nn.LSTM, proj_size=4, num_layers=2),
        head=nn.Linear(4, 3),
    ),
    "lstm_cell": _unrolled(nn.LSTMCell(6, 8)),
    "gru_cell": _unrolled(nn.GRUCell(6, 8)),
    "rnn_tanh_cell": _unrolled(nn.RNNCell(6, 8)),
    "rnn_relu_cell": _unrolled(nn.RNNCell(6, 8, nonlinearity="relu")),
    "gru": _recurrent(nn.GRU),
    "rnn_tanh": _recurrent(nn.RNN),
    "rnn_relu": _recurrent(nn.RNN, "relu"),
}
