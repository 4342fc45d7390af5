"""Whole blocks of known networks, in which many rules meet: what goes together, and that it can go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.passes.prune.groups import channel_groups
from tests.passes.prune.cases_product import Lstm
from tests.passes.prune.checks import Case, case, check_removal, widths_of

IMAGE = torch.randn(2, 3, 8, 8)
ROWS = torch.randn(2, 4, 6)


def conv(inputs: int, outputs: int, kernel: int = 1, **options: Any) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def _residual(m: Any, x: Tensor) -> Any:
    x = torch.relu(m.stem(x))
    x = x + m.b(torch.relu(m.a(x)))
    return m.head(x + m.d(torch.relu(m.c(x))))


def _dense(m: Any, x: Tensor) -> Any:
    x = m.stem(x)
    x = torch.cat([x, m.a(torch.relu(x))], 1)
    x = torch.cat([x, m.b(torch.relu(x))], 1)
    return m.head(m.depthwise(x))


def _shuffled(m: Any, x: Tensor) -> Any:
    """Two units of ShuffleNet V2: half of the channels pass, the others are mixed, then both are shuffled."""
    x = m.stem(x)
    for mix in (m.a, m.b):
        left, right = x.chunk(2, 1)
        x = torch.cat([left, torch.relu(mix(right))], 1)
        x = x.view(2, 2, 8, 8, 8).transpose(1, 2).reshape(2, 16, 8, 8)
    return m.head(x)


def _squeezed(m: Any, x: Tensor) -> Any:
    """Squeeze and excitation, the means by reshapes."""
    x = torch.relu(m.stem(x))
    scale = m.up(torch.relu(m.down(x.mean((2, 3)))))
    return m.head(x * torch.sigmoid(scale).view(2, 8, 1, 1))


def _with_class_token(m: Any, x: Tensor) -> Any:
    """A token in front, positions added, and the class read off the first token."""
    x = m.embed(x).flatten(2).transpose(1, 2)
    x = torch.cat([m.token.expand(2, -1, -1), x], 1) + m.positions
    x = x + m.gamma * m.mix(x)
    return m.head(x[:, 0])


def _windows(m: Any, x: Tensor) -> Any:
    """Shifted windows with attention, then four neighbours become one: Swin."""
    x = m.embed(x).permute(0, 2, 3, 1)
    y = x.roll((-2, -2), (1, 2)).view(2, 2, 4, 2, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(8, 16, 16)
    q, k, v = m.qkv(y).reshape(8, 16, 3, 4, 4).permute(2, 0, 3, 1, 4)
    y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(8, 16, 16)
    y = m.out(y).view(2, 2, 2, 4, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 16).roll((2, 2), (1, 2))
    x = x + y
    x = torch.cat([x[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1)
    return m.merge(x)


def _gated(m: Any, x: Tensor) -> Any:
    gate, value = m.up(x).chunk(2, -1)
    return m.down(functional.silu(gate) * value)


def _res2net(m: Any, x: Tensor) -> Any:
    """A ladder: each part is added to the result of the one before."""
    parts = torch.relu(m.stem(x)).chunk(3, 1)
    results = [parts[0]]
    for part, layer in zip(parts[1:], (m.a, m.b), strict=True):
        results.append(torch.relu(layer(part + results[-1])))
    return m.head(torch.cat(results, 1))


def _upsampled(m: Any, x: Tensor) -> Any:
    return m.head(functional.pixel_shuffle(m.grow(torch.relu(m.stem(x))), 2))


def _two_outputs(m: Any, x: Tensor) -> Any:
    x = torch.relu(m.stem(x))
    y = torch.relu(m.mix(x))
    return m.boxes(y), m.scores(y), y.mean((2, 3))[:, :2]


def _encoder(m: Any, x: Tensor) -> Any:
    return m.head(m.second(m.first(m.embed(x))))


def _layer() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)


torch.manual_seed(0)
NETWORKS: dict[str, Case] = {
    "residual": case(
        _residual, IMAGE, widths=[8, 12, 12], stem=conv(3, 8), a=conv(8, 12, 3), b=conv(12, 8), c=conv(8, 12, 3),
        d=conv(12, 8), head=conv(8, 4),
    ),
    "dense": case(
        _dense, IMAGE, widths=[8, 4, 4], stem=conv(3, 8), a=conv(8, 4, 3), b=conv(12, 4, 3),
        depthwise=conv(16, 16, 3, groups=16), head=conv(16, 4),
    ),
    "squeezed": case(
        _squeezed, IMAGE, widths=[8, 4], stem=conv(3, 8), down=nn.Linear(8, 4), up=nn.Linear(4, 8), head=conv(8, 4)
    ),
    "class_token": case(
        _with_class_token, IMAGE, widths=[16], embed=nn.Conv2d(3, 16, 4, 4), mix=nn.Linear(16, 16),
        token=nn.Parameter(torch.randn(1, 1, 16)), positions=nn.Parameter(torch.randn(1, 5, 16)),
        gamma=nn.Parameter(torch.randn(16)), head=nn.Linear(16, 4),
    ),
    "windows": case(
        _windows, IMAGE, widths=[16, 4, 4], embed=conv(3, 16), qkv=nn.Linear(16, 48), out=nn.Linear(16, 16),
        merge=nn.Linear(64, 4),
    ),
    "gated": case(_gated, ROWS, widths=[12], up=nn.Linear(6, 24), down=nn.Linear(12, 6)),
    "res2net": case(
        _res2net, IMAGE, widths=[4, 4, 4], stem=conv(3, 12), a=conv(4, 4, 3), b=conv(4, 4, 3), head=conv(12, 4)
    ),
    "upsampled": case(_upsampled, IMAGE, widths=[8, 4], stem=conv(3, 8), grow=conv(8, 16), head=conv(4, 3)),
    "two_outputs": case(
        _two_outputs, IMAGE, widths=[8, 6], stem=conv(3, 8), mix=conv(8, 8), boxes=conv(8, 4), scores=conv(8, 2)
    ),
    "encoder": case(
        _encoder, ROWS, widths=[16, 24, 24, 4, 4, 4, 4], embed=nn.Linear(6, 16), first=_layer(), second=_layer(),
        head=nn.Linear(16, 3), exact=False,
    ),
    "recurrent": case(
        lambda m, x: m.head(m.first(m.embed(x))), ROWS, widths=[8, 6], embed=nn.Linear(6, 6),
        first=Lstm(nn.LSTM, batch_first=True), head=nn.Linear(8, 2),
    ),
    "dynamic_batch": case(
        lambda m, x: m.head(
            functional.scaled_dot_product_attention(
                *(y.view(x.shape[0], -1, 4, 4).transpose(1, 2) for y in m.qkv(x).chunk(3, -1))
            ).transpose(1, 2).reshape(x.shape[0], -1, 16)
        ),
        ROWS, widths=[4, 4, 4], dynamic="batch", qkv=nn.Linear(6, 48), head=nn.Linear(16, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_units_can_go(name: str, seed: int) -> None:
    network = NETWORKS[name]
    program = network.program()
    groups = channel_groups(program)
    assert groups.unknown == {}
    assert widths_of(groups) == network.widths
    result = check_removal(program, network.inputs, network.exact, seed)
    if network.dynamic:
        result(*(torch.randn(5, *value.shape[1:]) for value in network.inputs))


def test_shuffled_channels_stay_in_step() -> None:
    network = case(_shuffled, IMAGE, widths=[], stem=conv(3, 16), a=conv(8, 8), b=conv(8, 8), head=conv(16, 4))
    program = network.program()
    assert sum(widths_of(channel_groups(program))) >= 8
    check_removal(program, network.inputs)


def positions(groups: Sequence[Any], tensor: str) -> list[int]:
    return [member.positions for group in groups for member in group.members if member.tensor == tensor]


def test_a_fused_projection_loses_the_same_of_queries_keys_and_values() -> None:
    groups = channel_groups(NETWORKS["windows"].program()).groups
    heads, dims = (group for group in groups if len(group.units) == 4)
    assert heads.members == dims.members
    assert [(m.tensor, m.dim, m.positions) for m in heads.members][:2] == [("qkv.weight", 0, 12), ("qkv.bias", 0, 12)]
    assert [(m.tensor, m.dim, m.positions) for m in dims.members][:2] == [("qkv.weight", 0, 12), ("qkv.bias", 0, 12)]


def test_an_unknown_op_keeps_all_that_it_touches() -> None:
    def function(m: Any, x: Tensor) -> Any:
        return m.second(torch.special.i0(m.first(x)))

    program = case(function, ROWS, widths=[], first=nn.Linear(6, 8), second=nn.Linear(8, 2)).program()
    groups = channel_groups(program)
    assert groups.groups == ()
    assert groups.unknown == {"special_i0": "aten.special_i0.default has no row in CHANNEL_RULES"}
    assert any("special_i0" in item.reason for item in groups.frozen)
    assert "has no row in CHANNEL_RULES" in str(groups)


def test_inputs_and_outputs_say_why_they_stay() -> None:
    program = case(lambda m, x: m.only(x), ROWS, widths=[], only=nn.Linear(6, 8)).program()
    reasons = {(item.tensor, item.dim): item.reason for item in channel_groups(program).frozen}
    assert reasons["only.weight", 0] == "it is a dimension of the output 'output'"
    assert reasons["only.weight", 1] == "it is a dimension of the input 'inputs_0'"
