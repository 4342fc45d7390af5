"""onnxruntime.quantization: static with the settings its documents advise for x86, static as it comes, and dynamic.

They advise weights of 7 bits (reduce_range) for a CPU without VNNI.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peer_tools.job import Job, main
from fxopt.machine import this_machine

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
    "matmul": CalibrationMethod.MinMax,
}
# Linears and embeddings alone: kept out of a transformer's integers is above all the attention mask, with its -3.4e38.
MATMUL_ONLY = ["MatMul", "Gemm", "Gather", "Conv"]
REDUCE_RANGE = this_machine() == "x86-avx2"
# The samples whose activations are held in memory at once, if it divides the number of samples.
HELD = 8


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Calibration samples in order, all or a range of them."""

    def __init__(self, samples: list[dict[str, np.ndarray]]) -> None:
        self.samples = samples
        self.set_range(0, len(samples))

    def __len__(self) -> int:
        return len(self.samples)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give out these samples next."""
        self.rest = iter(self.samples[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next sample, or None after the last one."""
        return next(self.rest, None)


def quantize(job: Job) -> None:
    """Quantize as the job's setting says."""
    prepared = job.output.with_suffix(".prepared.onnx")
    quant_pre_process(str(job.float_model), str(prepared))
    try:
        if job.setting == "dynamic":
            quantize_dynamic(
                prepared, job.output, per_channel=True, weight_type=QuantType.QInt8, reduce_range=REDUCE_RANGE
            )
        else:
            reader = Reader(job.calibration())
            quantize_static(prepared, job.output, reader, **_static(job.setting, len(reader)))
    finally:
        prepared.unlink()


def _static(setting: str, count: int) -> Mapping[str, Any]:
    """Return the arguments of quantize_static. Without the stride, the activations of all samples are held at once."""
    held = {"CalibStridedMinMax": HELD} if count % HELD == 0 else {}
    if setting == "default":
        return {"extra_options": held}
    return {
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "reduce_range": REDUCE_RANGE,
        "calibrate_method": METHODS[setting],
        "op_types_to_quantize": MATMUL_ONLY if setting == "matmul" else None,
        "extra_options": held,
    }


if __name__ == "__main__":
    main(version("onnxruntime"), quantize)
