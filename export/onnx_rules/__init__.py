"""ONNX_RULES: one emission rule an ATen overload, in files by family."""

from __future__ import annotations

from typing import Any

from fxopt.export.builder import Rule
from fxopt.export.onnx_rules import convolution, elementwise

ONNX_RULES: dict[Any, Rule] = {**convolution.RULES, **elementwise.RULES}
