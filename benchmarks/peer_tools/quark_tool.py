"""AMD Quark's ONNX quantizer with its preset for unsigned activations and signed weights."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
from onnxruntime.quantization import CalibrationDataReader
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config import get_default_config
from quark.onnx.quantization.config.config import Config

from benchmarks.peer_tools.job import Job, main


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Calibration samples in order."""

    def __init__(self, samples: list[dict[str, np.ndarray]]) -> None:
        self.samples = samples
        self.rewind()

    def rewind(self) -> None:
        """Start over."""
        self.rest = iter(self.samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next sample, or None after the last one."""
        return next(self.rest, None)


def quantize(job: Job) -> None:
    """Quantize with the preset U8S8_AAWS as it is."""
    config = Config(global_quant_config=get_default_config("U8S8_AAWS"))
    ModelQuantizer(config).quantize_model(str(job.float_model), str(job.output), Reader(job.calibration()))


if __name__ == "__main__":
    main(version("amd-quark"), quantize)
