"""AIMET's simulation of 8-bit weights and activations, written with QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from importlib.metadata import version

import onnx
from aimet_onnx import QuantizationSimModel

from benchmarks.peer_tools.job import Job, main


def quantize(job: Job) -> None:
    """Calibrate the ranges (minimum and maximum) and write the model; weights are written as integers."""
    simulation = QuantizationSimModel(
        onnx.load(job.float_model), param_type="int8", activation_type="int8", quant_scheme="min_max"
    )
    simulation.compute_encodings(job.calibration())
    onnx.save(simulation.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), job.output)


if __name__ == "__main__":
    main(version("aimet-onnx"), quantize)
