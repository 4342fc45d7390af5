"""OpenVINO's CPU device on one ONNX file: `python -m benchmarks.runtime_tools.openvino_tool MODEL SETTING IN OUT`.

IN and OUT are headers of exchange.py; the samples lie along the first dimension and are run one by one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from benchmarks.runtime_tools.exchange import read_arrays, write_arrays

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "accuracy": {"EXECUTION_MODE_HINT": "ACCURACY"},  # no bfloat16 where the CPU has it
}
COMPUTE = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
INTEGERS = {"u8", "i8"}


def run(model: Path, setting: str, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the first output for all samples, and what is to be told of the run."""
    options = {"INFERENCE_NUM_THREADS": "1", **SETTINGS[setting]}
    compiled = openvino.Core().compile_model(str(model), "CPU", options)
    names = [port.get_any_name() for port in compiled.inputs]
    outputs, seconds = [], []
    for index in range(len(next(iter(inputs.values())))):
        feeds = {name: inputs[name][index : index + 1] for name in names}
        start = time.perf_counter()
        outputs.append(np.array(compiled(feeds)[0]))
        seconds.append(time.perf_counter() - start)
    layers = compiled.get_runtime_model().get_ops()
    integer = sum(
        _info(layer, "layerType") in COMPUTE and _info(layer, "runtimePrecision") in INTEGERS for layer in layers
    )
    facts = {"version": openvino.__version__, "seconds": float(np.median(seconds)), "integer": integer}
    return np.concatenate(outputs), facts


def _info(layer: Any, key: str) -> str:
    info = layer.get_rt_info()
    return info[key].astype(str) if key in info else ""


def main() -> None:
    """Run the command line."""
    model, setting, header, output = sys.argv[1:]
    values, facts = run(Path(model), setting, read_arrays(Path(header))[0])
    write_arrays(Path(output), {"output": values}, facts)


if __name__ == "__main__":
    main()
