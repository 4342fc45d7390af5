"""Static int8 quantization: observe, calibrate, convert."""

from fxopt.passes.quantize.calibrate import Calibrate
from fxopt.passes.quantize.convert import Convert
from fxopt.passes.quantize.correct_bias import CorrectBias
from fxopt.passes.quantize.insert import InsertObservers
from fxopt.passes.quantize.placement import Placement, place
from fxopt.passes.quantize.quantize import Quantize
from fxopt.passes.quantize.quantize_dynamic import QuantizeDynamic

__all__ = [
    "Calibrate",
    "Convert",
    "CorrectBias",
    "InsertObservers",
    "Placement",
    "Quantize",
    "QuantizeDynamic",
    "place",
]
