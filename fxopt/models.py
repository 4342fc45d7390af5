"""Models by name, as the command line takes them.

    file.py:factory            a function (or class) that returns a Module, or (Module, example inputs)
    package.module:factory     the same, from an importable module
    torchvision:NAME           its architecture with random weights
    timm:NAME                  its architecture with random weights
    hf:FOLDER                  a local transformers folder: config.json, with or without weights
    NAME.pt2                   a Program, or an ExportedProgram

Nothing is downloaded: weights come from a file that the user names, or from the folder.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fxopt.data import import_attribute
from fxopt.errors import ModelError
from fxopt.graph.capture import Dynamic
from fxopt.graph.program import Program
from fxopt.graph.serialize import load

FORMS = "file.py:factory, package.module:factory, torchvision:NAME, timm:NAME, hf:FOLDER or a .pt2 file"
# torchvision's families that take other things than one batch of images.
OTHER_INPUTS = tuple(f"torchvision.models.{family}" for family in ("detection", "video", "optical_flow"))
# Keys under which training scripts keep the weights inside a checkpoint.
CHECKPOINT_KEYS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")


@dataclass(frozen=True)
class LoadedModel:
    """A model, the inputs to capture it with, and the dimensions that are naturally dynamic; None where not known."""

    model: nn.Module | Program
    example_inputs: Any = None
    dynamic: Dynamic = None


def load_model(name: str, state_dict: str | Path | None = None) -> LoadedModel:
    """Load a model by name (see the module's text), optionally with the weights of a file.

    Raises ModelError, with close matches or the command that installs what is missing.
    """
    kind, _, rest = name.partition(":")
    if name.endswith(".pt2"):
        loaded = LoadedModel(load(name))
    elif kind in LOADERS:
        loaded = LOADERS[kind](rest)
    elif ":" in name:
        loaded = load_factory(name)
    else:
        raise ModelError(f"Cannot tell what model '{name}' is: give {FORMS}.")
    if state_dict is not None:
        if isinstance(loaded.model, Program):
            raise ModelError(f"{name} holds its own weights; a state dict cannot be loaded into it.")
        load_weights(loaded.model, Path(state_dict))
    return loaded


def load_factory(name: str) -> LoadedModel:
    """Import a factory and call it without arguments."""
    factory: Any = import_attribute(name)
    if not callable(factory):
        raise ModelError(f"{name} is a {type(factory).__name__}, not a function that returns a model.")
    made = factory if isinstance(factory, (nn.Module, Program)) else called(name, factory)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, (nn.Module, Program)):
        raise ModelError(f"{name} returned {_described(made)}; it must return a Module or (Module, example inputs).")
    return LoadedModel(model, inputs)


def called(name: str, build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call someone else's constructor; what it raises becomes a ModelError."""
    try:
        return build(*args, **kwargs)
    except Exception as error:
        raise ModelError(f"{name} cannot be built: {type(error).__name__}: {error}") from error


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(entry).__name__ for entry in value) or 'nothing'}"
    return f"a {type(value).__name__}"


def imported(library: str, install: str | None = None) -> ModuleType:
    """Import an optional library. Raises ModelError with the command that installs it."""
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library.partition(".")[0]:
            raise ModelError(f"{library} needs {error.name}: run pip install {error.name}.") from error
        raise ModelError(f"This model needs {library}: run pip install {install or library}.") from None
    except Exception as error:
        hint = f"Is it made for torch {torch.__version__}?"
        raise ModelError(f"{library} fails on import, {type(error).__name__}: {error}\n{hint}") from error


def check_name(library: str, name: str, names: Iterable[str]) -> None:
    """Raise ModelError, with close matches, unless the library has the name."""
    known = sorted(set(names))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f"Did you mean {', '.join(near)}?" if near else f"It has {len(known)}, such as {', '.join(known[:3])}."
        raise ModelError(f"{library} has no model '{name}'. {hint}")


def load_torchvision(name: str) -> LoadedModel:
    """Build a torchvision architecture with random weights, and images of the size it was trained on."""
    models = imported("torchvision").models
    check_name("torchvision", name, models.list_models())
    builder = models.get_model_builder(name)
    arguments: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        arguments["weights_backbone"] = None  # its default is a download
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True  # left out, it warns
    model = called(f"torchvision:{name}", builder, **arguments)
    if builder.__module__.startswith(OTHER_INPUTS):
        return LoadedModel(model)
    return LoadedModel(model, image(3, *_torchvision_size(models, name)))


def _torchvision_size(models: ModuleType, name: str) -> tuple[int, int]:
    weights = list(models.get_model_weights(name))
    transforms = weights[0].transforms() if weights else None
    size = getattr(transforms, "crop_size", None) or getattr(transforms, "resize_size", None) or [224]
    return size[0], size[-1]


def load_timm(name: str) -> LoadedModel:
    """Build a timm architecture with random weights, and images of the size it was trained on."""
    timm = imported("timm")
    check_name("timm", name.partition(".")[0], timm.list_models())
    model = called(f"timm:{name}", timm.create_model, name, pretrained=False)
    channels, height, width = model.pretrained_cfg.get("input_size", (3, 224, 224))
    return LoadedModel(model, image(channels, height, width))


def load_huggingface(folder: str) -> LoadedModel:
    """Load a local transformers folder; text models get a dynamic batch and sequence length."""
    imported("transformers")
    from fxopt.transformers_models import load_folder

    model, inputs, dynamic = load_folder(Path(folder))
    return LoadedModel(model, inputs, dynamic)


LOADERS: Mapping[str, Callable[[str], LoadedModel]] = {
    "torchvision": load_torchvision,
    "timm": load_timm,
    "hf": load_huggingface,
}


def image(channels: int, height: int, width: int) -> Tensor:
    """Return one reproducible image of standard normal pixels, [1, channels, height, width]."""
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a `.safetensors` file, or a `.pt`/`.pth`/`.bin` file of plain tensors, into a model. Every name must fit."""
    state = read_state(path)
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    problems = [f"it lacks {_some(missing)}"] if missing else []
    problems += [f"the model has no {_some(unexpected)}"] if unexpected else []
    shapes = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    problems += [f"other shapes in {_some(sorted(shapes))}"] if shapes else []
    if problems:
        raise ModelError(f"{path} does not fit {type(model).__name__}: {'; '.join(problems)}.")
    model.load_state_dict(state)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read tensors by name. Nothing but tensors is unpickled."""
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            state = imported("safetensors.torch", "safetensors").load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "Give a .safetensors file, or a state dict written by torch.save."
        raise ModelError(f"{path} cannot be read as weights: {first}\n{hint}") from error
    for key in CHECKPOINT_KEYS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict (tensors by name).")
    return dict(state)


def with_inputs(loaded: LoadedModel, inputs: Any) -> LoadedModel:
    """Replace the example inputs; None leaves them as they are."""
    return loaded if inputs is None else replace(loaded, example_inputs=inputs)
