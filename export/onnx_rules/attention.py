"""scaled_dot_product_attention: one Attention op from opset 23 on, matrix products and a softmax before."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.export.builder import OnnxGraph, Rule

aten = torch.ops.aten

ATTENTION_OPSET = 23


def scaled_dot_product_attention(
    g: OnnxGraph,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    attn_mask: fx.Node | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> str:
    """aten::scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0., bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor"""  # noqa: E501
    if g.opset >= ATTENTION_OPSET and _fits_attention(g, query, key, value, attn_mask):
        return _attention(g, query, key, value, attn_mask, is_causal, scale)
    return _decomposed(g, query, key, value, attn_mask, is_causal, scale, enable_gqa)


def _fits_attention(g: OnnxGraph, query: fx.Node, key: fx.Node, value: fx.Node, mask: fx.Node | None) -> bool:
    """Say whether the operands have 3 or 4 dimensions and one batch size; the op does not broadcast."""
    rank = g.rank(query)
    same_rank = rank in (3, 4) and g.rank(key) == rank and g.rank(value) == rank
    batches = {str(g.val(node).shape[0]) for node in (query, key, value)}
    return same_rank and len(batches) == 1 and (mask is None or 2 <= g.rank(mask) <= rank)


def _attention(
    g: OnnxGraph, query: fx.Node, key: fx.Node, value: fx.Node, mask: fx.Node | None, is_causal: bool, scale: Any
) -> str:
    attributes = {"is_causal": int(is_causal) or None, "scale": scale}
    full = None if mask is None else _full_mask(g, mask, query, key)
    if g.rank(query) == 4:
        return g.op("Attention", query, key, value, full, **attributes)
    heads = [g.op("Unsqueeze", node, [1]) for node in (query, key, value)]
    if mask is not None and g.rank(mask) == 3:
        full = g.op("Unsqueeze", full, [1])
    return g.op("Squeeze", g.op("Attention", *heads, full, **attributes), [1])


def _full_mask(g: OnnxGraph, mask: fx.Node, query: fx.Node, key: fx.Node) -> str:
    """Expand the last two dimensions of a mask where they are 1: onnxruntime broadcasts only those before."""
    result = g.value(mask)
    lengths = (g.val(query).shape[-2], g.val(key).shape[-2])
    if all(have == 1 and want != 1 for have, want in zip(g.val(mask).shape[-2:], lengths, strict=True)):
        return g.op("Expand", result, _join(g, _length(g, query), _length(g, key)))
    if g.val(mask).shape[-2] == 1 and lengths[0] != 1:
        return g.op("Expand", result, _join(g, _length(g, query), [1]))
    if g.val(mask).shape[-1] == 1 and lengths[1] != 1:
        return g.op("Expand", result, _join(g, [1], _length(g, key)))
    return result


def _length(g: OnnxGraph, node: fx.Node) -> Any:
    """Return the length of a sequence (dimension -2) as a list of one int or as a 1-D value."""
    size = g.val(node).shape[-2]
    return [size] if isinstance(size, int) else g.op("Shape", node, start=-2, end=-1)


def _join(g: OnnxGraph, rows: Any, columns: Any) -> str:
    if isinstance(rows, list) and isinstance(columns, list):
        return g.constant(rows + columns)
    return g.op("Concat", rows, columns, axis=0)


def _decomposed(
    g: OnnxGraph,
    query: fx.Node,
    key: fx.Node,
    value: fx.Node,
    mask: fx.Node | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> str:
    factor = 1 / math.sqrt(int(g.val(query).shape[-1])) if scale is None else scale
    keys, values = (_repeat_heads(g, node, query, enable_gqa) for node in (key, value))
    rank = g.rank(key)
    transposed = g.op("Transpose", keys, perm=[*range(rank - 2), rank - 1, rank - 2])
    # Scaling the query is cheaper than scaling the scores, and onnxruntime fuses it into the product.
    scores = g.op("MatMul", g.op("Mul", query, g.constant(factor, g.dtype())), transposed)
    keep: str | None = None
    if is_causal:
        scores = g.op("Add", scores, _causal_mask(g, query, key))
    if mask is not None:
        scores, keep = _masked(g, scores, mask)
    result = g.op("MatMul", g.op("Softmax", scores, axis=-1), values)
    return result if keep is None else g.op("Where", keep, result, g.constant(0.0, g.dtype()))


def _repeat_heads(g: OnnxGraph, node: fx.Node, query: fx.Node, enable_gqa: bool) -> str:
    """Repeat each head of keys or values for the group of query heads that shares it."""
    if not enable_gqa:
        return g.value(node)
    heads, shared = int(g.val(query).shape[-3]), int(g.val(node).shape[-3])
    if heads == shared:
        return g.value(node)
    return g.op("Gather", node, torch.arange(shared).repeat_interleave(heads // shared), axis=g.rank(node) - 3)


def _causal_mask(g: OnnxGraph, query: fx.Node, key: fx.Node) -> str:
    """Return what to add to the scores: 0 where the key is no later than the query, else a very low number."""
    rows, columns = g.val(query).shape[-2], g.val(key).shape[-2]
    lowest = torch.finfo(g.dtype()).min
    if isinstance(rows, int) and isinstance(columns, int):
        return g.constant(torch.full((rows, columns), lowest).triu(1), g.dtype())
    square = g.op("Expand", g.constant(lowest, g.dtype()), _join(g, _length(g, query), _length(g, key)))
    return g.op("Trilu", square, g.constant(1), upper=1)


def _masked(g: OnnxGraph, scores: str, mask: fx.Node) -> tuple[str, str | None]:
    """Apply a mask; also return which rows attend to anything (the others are 0 in torch), None if surely all."""
    known = g.tensor(mask)
    if g.dtype(mask) is torch.bool:
        lowest = torch.finfo(g.dtype()).min
        if known is not None:
            bias = g.constant(torch.zeros(known.shape).masked_fill(~known, lowest), g.dtype(), name=str(mask.target))
        else:
            bias = g.op("Where", mask, g.constant(0.0, g.dtype()), g.constant(lowest, g.dtype()))
        return g.op("Add", scores, bias), _attending(g, mask, known)
    scores = g.op("Add", scores, g.cast(mask, g.dtype()))
    return scores, _attending(g, mask, None if known is None else known > -math.inf)


def _attending(g: OnnxGraph, mask: fx.Node, known: Tensor | None) -> str | None:
    if known is not None:
        rows = known.any(-1, keepdim=True)
        return None if bool(rows.all()) else g.constant(rows)
    is_bool = g.dtype(mask) is torch.bool
    attends = mask if is_bool else g.op("Greater", mask, g.constant(-math.inf, g.dtype(mask)))
    # A sum, since onnxruntime's shape inference, which its quantizer needs, loses the shape of a ReduceMax.
    return g.op("Cast", g.op("ReduceSum", g.op("Cast", attends, to=6), [-1], keepdims=1), to=9)


RULES: dict[Any, Rule] = {
    aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
}
