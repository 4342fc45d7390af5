"""onnxruntime sessions: made one way everywhere, fed with torch tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from fxopt.errors import ValidationError
from fxopt.graph.memory import return_free_memory

Level = Literal["all", "none"]
LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class Session:
    """A loaded ONNX model. Calling it takes the tensor inputs in order and returns the output tensors in order."""

    def __init__(
        self,
        model: str | Path | onnx.ModelProto,
        *,
        level: Level = "all",
        threads: int = 1,
        settings: Mapping[str, str] | None = None,
        optimized: Path | None = None,
        profile: Path | None = None,
    ) -> None:
        """Load a model from a file or a proto. Raises ValidationError if onnxruntime refuses it.

        `settings` are session options by name; `optimized` is where to write onnxruntime's optimised graph, `profile`
        the prefix of the per-node profile.
        """
        self.threads = threads
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = LEVELS[level]
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in (settings or {}).items():
            options.add_session_config_entry(key, value)
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
        try:
            self.raw = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValidationError(f"onnxruntime does not load the model: {str(error).strip()}") from error
        return_free_memory()  # the file and the weights as they were before they were packed
        self.inputs = [entry.name for entry in self.raw.get_inputs()]
        self.outputs = [entry.name for entry in self.raw.get_outputs()]

    def feeds(self, tensors: Sequence[Tensor], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Name the tensor inputs. An input that the graph does not use is left out."""
        names = self.inputs if names is None else names
        pairs = zip(names, tensors, strict=True)
        return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in pairs if name in self.inputs}

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Run the model on its inputs, in order."""
        return self.run(self.feeds(tensors))

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[Tensor]:
        """Run the model on named arrays."""
        try:
            return [torch.from_numpy(np.asarray(array)) for array in self.raw.run(None, dict(feeds))]
        except Exception as error:
            shapes = {name: list(array.shape) for name, array in feeds.items()}
            raise ValidationError(f"onnxruntime fails on inputs {shapes}: {str(error).strip()}") from error
