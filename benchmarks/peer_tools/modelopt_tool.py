"""NVIDIA ModelOpt's ONNX quantization with its defaults: int8, entropy; no conversion of the rest to float16."""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version

import numpy as np
from modelopt.onnx.quantization import quantize as quantize_onnx

from benchmarks.peer_tools.job import Job, main


def quantize(job: Job) -> None:
    """Quantize on the CPU; it takes all samples as one array an input, and feeds them by the model's batch.

    It works on a copy: it writes into the file that it is given.
    """
    items = job.calibration()
    with tempfile.TemporaryDirectory() as folder:
        quantize_onnx(
            shutil.copy(job.float_model, folder),
            quantize_mode="int8",
            calibration_method="entropy",
            calibration_data={name: np.concatenate([item[name] for item in items]) for name in items[0]},
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(job.output),
        )


if __name__ == "__main__":
    main(version("nvidia-modelopt"), quantize)
