"""A local transformers folder as a model with example inputs. Import it only where transformers is installed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from fxopt.errors import ModelError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
BATCH, TOKENS, SAMPLES = 2, 16, 16000  # of the example: sequences, tokens of a text, samples of a sound
TEXT_DIMENSIONS = {0: "batch", 1: "sequence"}

Dimensions = dict[str, dict[int, str]]


def load_folder(folder: Path) -> tuple[nn.Module, dict[str, Tensor] | None, Dimensions | None]:
    """Load the model that a folder's config.json names, its example inputs, and the dynamic dimensions of a text model.

    Without weights in the folder they are random. Raises ModelError for a folder that does not hold a model.
    """
    if not (folder / "config.json").is_file():
        missing = "is no folder" if not folder.is_dir() else "holds no config.json"
        raise ModelError(f"hf:{folder}: {folder} {missing}; give a local folder written by save_pretrained.")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config.use_cache = False  # a cache among the outputs is of no use in one forward pass
        model = _build(folder, config)
    except Exception as error:
        raise ModelError(f"hf:{folder} cannot be loaded: {type(error).__name__}: {error}") from error
    inputs = example_inputs(model)
    texts = {name: TEXT_DIMENSIONS for name in inputs or {} if name in TEXT_INPUTS}
    dynamic = {name: dict(texts.get(name, {0: "batch"})) for name in inputs or {}} if texts else None
    if dynamic and "decoder_input_ids" in dynamic:
        dynamic["decoder_input_ids"][1] = "decoder_sequence"
    return model.eval(), inputs, dynamic


def _build(folder: Path, config: Any) -> Any:
    """Build the class that the config names (it has the task's head), else the bare model."""
    named = getattr(transformers, (config.architectures or [""])[0], None)
    if any((folder / name).is_file() for name in WEIGHTS):
        loader = named or transformers.AutoModel
        return loader.from_pretrained(folder, config=config, local_files_only=True, dtype=torch.float32)
    config.dtype = torch.float32
    automatic: Any = transformers.AutoModel
    return named(config) if named else automatic.from_config(config)


def example_inputs(model: Any) -> dict[str, Tensor] | None:
    """Make the inputs that a model needs, by keyword; None where only the user can know them."""
    accepted = inspect.signature(model.forward).parameters
    config = model.config
    names = [model.main_input_name]
    if "input_ids" in names and "attention_mask" in accepted:
        names.append("attention_mask")
    if getattr(config, "vision_config", None) is not None and "pixel_values" in accepted:
        names.append("pixel_values")
    if config.is_encoder_decoder and "decoder_input_ids" in accepted:
        names.append("decoder_input_ids")
    names = list(dict.fromkeys(names))
    if any(name not in INPUTS or name not in accepted for name in names):
        return None
    generator = torch.Generator().manual_seed(0)
    return {name: INPUTS[name](config, generator) for name in names}


def _tokens(config: Any, generator: torch.Generator) -> Tensor:
    """Token ids above the special ones, which are the first few in nearly every vocabulary."""
    vocabulary = int(config.get_text_config().vocab_size)
    return torch.randint(min(5, vocabulary - 1), min(vocabulary, 1000), (BATCH, TOKENS), generator=generator)


def _mask(config: Any, generator: torch.Generator) -> Tensor:
    """All tokens but the last of the last sequence: a mask of ones alone could be taken for no mask."""
    mask = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    mask[-1, -1] = 0
    return mask


def _image(config: Any, generator: torch.Generator) -> Tensor:
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(BATCH, getattr(vision, "num_channels", 3), height, width, generator=generator)


def _sound(config: Any, generator: torch.Generator) -> Tensor:
    """One second at 16 kHz, or the spectrogram of a model that takes one."""
    bins = getattr(config, "num_mel_bins", None)
    shape = (BATCH, config.max_length, bins) if bins and getattr(config, "max_length", None) else (BATCH, SAMPLES)
    return torch.randn(shape, generator=generator)


INPUTS: Mapping[str, Callable[[Any, torch.Generator], Tensor]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "attention_mask": _mask,
    "pixel_values": _image,
    "input_values": _sound,
}
TEXT_INPUTS = ("input_ids", "attention_mask", "decoder_input_ids")
