"""fxopt: compile a PyTorch model for deployment by rewriting its graph."""

from fxopt import export, passes
from fxopt.compile import Result, compile
from fxopt.debugging import Distribution, LayerError, distributions, layer_errors
from fxopt.errors import FxoptError
from fxopt.graph.capture import capture
from fxopt.graph.pipeline import Pass, Pipeline
from fxopt.graph.program import Program, TensorSpec
from fxopt.graph.serialize import load
from fxopt.prune_to_latency import prune_to_latency
from fxopt.report import Report
from fxopt.target import TARGETS, Target
from fxopt.train import train
from fxopt.training import schedules
from fxopt.training.options import Training
from fxopt.version import __version__

__all__ = [
    "TARGETS",
    "Distribution",
    "FxoptError",
    "LayerError",
    "Pass",
    "Pipeline",
    "Program",
    "Report",
    "Result",
    "Target",
    "TensorSpec",
    "Training",
    "__version__",
    "capture",
    "compile",
    "distributions",
    "export",
    "layer_errors",
    "load",
    "passes",
    "prune_to_latency",
    "schedules",
    "train",
]
