"""From a Program to an ONNX file, and the proof that the file is right."""

from fxopt.export.census import Census, take_census
from fxopt.export.compare import OutputError, compare_outputs
from fxopt.export.measure import Measurement, measure, profile
from fxopt.export.model_file import OnnxModel
from fxopt.export.session import Session
from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import Validation, validate

__all__ = [
    "Census",
    "Measurement",
    "OnnxModel",
    "OutputError",
    "Session",
    "Validation",
    "compare_outputs",
    "measure",
    "profile",
    "take_census",
    "to_onnx",
    "validate",
]
