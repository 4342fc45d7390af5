"""NNCF's post-training quantization of the ONNX model: with fast bias correction, its default, and with full."""

from __future__ import annotations

from importlib.metadata import version

import nncf
import onnx

from benchmarks.peer_tools.job import Job, main


def quantize(job: Job) -> None:
    """Quantize as the job's setting says; a transformer is called one."""
    items = job.calibration()
    result = nncf.quantize(
        onnx.load(job.float_model),
        nncf.Dataset(items),
        subset_size=len(items),
        fast_bias_correction=job.setting != "full-bias-correction",
        model_type=nncf.ModelType.TRANSFORMER if job.kind == "transformer" else None,
        target_device=nncf.TargetDevice.CPU,
    )
    onnx.save(result, job.output)


if __name__ == "__main__":
    main(version("nncf"), quantize)
