"""Static int8 quantization: observe, calibrate, convert."""

from fxopt.passes.quantize.calibrate import Calibrate
from fxopt.passes.quantize.convert import Convert
from fxopt.passes.quantize.insert import InsertObservers
from fxopt.passes.quantize.placement import Placement, place
from fxopt.passes.quantize.quantize import Quantize

__all__ = ["Calibrate", "Convert", "InsertObservers", "Placement", "Quantize", "place"]
