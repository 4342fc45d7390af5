"""Rows of attention and embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch

from fxopt.passes.prune.rule import Call, ChannelRule, Labels, Shrink, broadcast, shape_of

aten = torch.ops.aten


def _attention(call: Call) -> Labels:
    """Softmax(q k' scale) v: q and k share the head dimension, all three the heads, and no token can go.

    With enable_gqa, head h of q belongs to head h // repeat of k and v.
    """
    query, key, value = (call.labels(name) for name in ("query", "key", "value"))
    call.freeze(query[-2], key[-2], value[-2], because="softmax runs over tokens")
    call.unify(query[-1], key[-1])
    if call["enable_gqa"]:
        query_heads = shape_of(call["query"])[-3]
        for labels, name in ((key, "key"), (value, "value")):
            heads = shape_of(call[name])[-3]
            of_key, _ = call.split(query[-3], heads, query_heads // heads)
            call.unify(of_key, labels[-3])
        batches = [(labels[:-3], shape_of(call[name])[:-3]) for labels, name in _operands(query, key, value)]
        batch = (*broadcast(call, batches), query[-3])
    else:
        batches = [(labels[:-2], shape_of(call[name])[:-2]) for labels, name in _operands(query, key, value)]
        batch = broadcast(call, batches)
    result = (*batch, query[-2], value[-1])
    if call["attn_mask"] is not None:
        mask, sizes = call.labels("attn_mask"), shape_of(call["attn_mask"])
        call.freeze(*mask[-2:], because="softmax runs over tokens")
        broadcast(call, [(batch, call.shape[:-2]), (mask[:-2], sizes[:-2])])
    return result


def _operands(query: Labels, key: Labels, value: Labels) -> tuple[tuple[Labels, str], ...]:
    return (query, "query"), (key, "key"), (value, "value")


def _pin_scale(shrink: Shrink) -> None:
    """The default scale is that of the head dimension; it stays the one of the whole head."""
    call = shrink.call
    if call["scale"] is None and shrink.cuts(call.labels("query")[-1]):
        shrink.set(scale=1 / math.sqrt(int(shape_of(call["query"])[-1])))


def _embedding(call: Call) -> Labels:
    """Any index may come, so every row of the table stays."""
    table = call.labels("weight")
    call.freeze(table[0], because="it is looked up in")
    return (*call.labels("indices"), table[1])


ATTENTION_RULES: dict[Any, ChannelRule] = {
    aten.scaled_dot_product_attention.default: ChannelRule(_attention, _pin_scale),
    aten.embedding.default: ChannelRule(_embedding),
}
