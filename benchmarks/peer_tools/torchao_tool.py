"""torchao's PT2E quantization with its x86 quantizer, written by torch.onnx.export."""

from __future__ import annotations

from importlib.metadata import version

import torch
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from benchmarks.peer_tools.job import Job, main


def quantize(job: Job) -> None:
    """Quantize the exported network, calibrated sample by sample."""
    items = [tuple(torch.from_numpy(array) for array in item.values()) for item in job.calibration()]
    exported = torch.export.load(job.exported_model)
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported.module(), quantizer)
    with torch.no_grad():
        for item in items:
            prepared(*item)
    converted = convert_pt2e(prepared)
    torch.onnx.export(converted, items[0], job.output, dynamo=True, verbose=False)


if __name__ == "__main__":
    main(version("torchao"), quantize)
