"""CHANNEL_RULES: how each op relates the positions of its operands and results, one row an op.

An op without a row freezes all that it touches, and the report names it.
"""

from __future__ import annotations

from typing import Any

from fxopt.passes.prune.rule import ChannelRule
from fxopt.passes.prune.rules_attention import ATTENTION_RULES
from fxopt.passes.prune.rules_create import CREATE_RULES
from fxopt.passes.prune.rules_image import IMAGE_RULES
from fxopt.passes.prune.rules_index import INDEX_RULES
from fxopt.passes.prune.rules_norm import NORM_RULES
from fxopt.passes.prune.rules_pointwise import POINTWISE_RULES
from fxopt.passes.prune.rules_product import PRODUCT_RULES
from fxopt.passes.prune.rules_recurrent import RECURRENT_RULES
from fxopt.passes.prune.rules_reduce import REDUCE_RULES
from fxopt.passes.prune.rules_shape import SHAPE_RULES
from fxopt.passes.prune.rules_slice import SLICE_RULES

CHANNEL_RULES: dict[Any, ChannelRule] = {
    **POINTWISE_RULES,
    **PRODUCT_RULES,
    **ATTENTION_RULES,
    **NORM_RULES,
    **SHAPE_RULES,
    **IMAGE_RULES,
    **SLICE_RULES,
    **INDEX_RULES,
    **REDUCE_RULES,
    **CREATE_RULES,
    **RECURRENT_RULES,
}
