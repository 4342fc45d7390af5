"""One error class a stage. Every message says what failed, where, and what to do next."""

from __future__ import annotations

import re

from torch import fx


class FxoptError(Exception):
    """The base of every error that fxopt raises on purpose."""


class CaptureError(FxoptError):
    """The model could not become a Program."""


class VerifyError(FxoptError):
    """A Program breaks one of its invariants."""


class PassError(FxoptError):
    """A pass failed or left an invalid Program."""


class DataError(FxoptError):
    """Calibration, training or example data cannot be used."""


class TrainingError(FxoptError):
    """A training cannot start, go on, or be resumed."""


class TargetError(FxoptError):
    """The target or opset does not exist, or cannot express what is asked."""


class UnsupportedOpError(FxoptError):
    """An op has no row in a table that needs one."""


class ExportError(FxoptError):
    """The Program could not become an ONNX file."""


class ValidationError(FxoptError):
    """The ONNX file does not agree with its Program."""


class BudgetError(FxoptError):
    """No model was found within max_drop and max_latency; the message says what was reached."""


class ModelError(FxoptError):
    """A model, recipe or file named by the user does not exist or cannot be loaded."""


_SOURCE_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)(?:\n\s+(?P<code>[^\n]+))?')


def source_line(node: fx.Node) -> str:
    """Return the user's own line that made `node`, as `file:line: code`, or an empty string."""
    frames = list(_SOURCE_LINE.finditer(node.meta.get("stack_trace") or ""))
    if not frames:
        return ""
    own = [frame for frame in frames if "/torch/" not in frame["file"]] or frames
    last = own[-1]
    return f"{last['file']}:{last['line']}: {(last['code'] or '').strip()}"


def where(node: fx.Node) -> str:
    """Describe a node for an error message: its name, its op, and the user's line where it is known."""
    line = source_line(node)
    return f"node '{node.name}' ({node.target})" + (f", from {line}" if line else "")
