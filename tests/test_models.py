"""load_model(): every kind of name, and what a wrong one says."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.zoo_models.shim import declare_torchvision_ops
from fxopt.errors import ModelError
from fxopt.graph.capture import capture
from fxopt.graph.program import Program
from fxopt.models import LoadedModel, load_model

FACTORIES = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x)

def alone():
    return Net()

def with_example():
    return Net(), torch.ones(3, 4)

def nothing():
    return None

def triple():
    return Net(), torch.ones(3, 4), "batch"

def broken():
    return Net(1, 2)

ready = Net()
number = 3
"""


@pytest.fixture
def factories(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "some_factories.py"
    path.write_text(FACTORIES)
    yield path
    sys.modules.pop("some_factories", None)


def state_of(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    assert isinstance(loaded.model, nn.Module)
    return loaded.model.state_dict()


def test_a_factory_in_a_file(factories: Path) -> None:
    loaded = load_model(f"{factories}:alone")
    assert list(state_of(loaded)) == ["linear.weight", "linear.bias"]
    assert loaded.example_inputs is None


def test_a_factory_with_example_inputs(factories: Path) -> None:
    assert torch.equal(load_model(f"{factories}:with_example").example_inputs, torch.ones(3, 4))


def test_a_class_and_a_module_are_factories_too(factories: Path) -> None:
    assert state_of(load_model(f"{factories}:Net")).keys() == state_of(load_model(f"{factories}:ready")).keys()


def test_a_factory_in_a_module_of_the_current_folder(factories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(factories.parent)
    assert isinstance(load_model("some_factories:alone").model, nn.Module)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "returned a NoneType"),
        ("triple", "returned a tuple of Net, Tensor, str"),
        ("broken", "cannot be built: TypeError"),
        ("number", "is a int, not a function"),
        ("absent", "has no 'absent'"),
    ],
)
def test_a_wrong_factory_is_named(factories: Path, name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_model(f"{factories}:{name}")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.py:make", "no file nowhere.py"),
        ("no_such_package.models:make", "no module 'no_such_package.models'"),
        ("nowhere.pt2", "no file"),
        ("resnet18", "Cannot tell what model 'resnet18' is"),
        ("hf:nowhere", "nowhere is no folder"),
        ("timm:resnet18x", "no model 'resnet18x'. Did you mean .*resnet18"),
        ("timm:qqqqqqqqqqqq", r"It has \d+, such as"),
    ],
)
def test_a_name_that_does_not_exist(name: str, says: str) -> None:
    declare_torchvision_ops()
    with pytest.raises(ModelError, match=says):
        load_model(name)


@pytest.mark.parametrize("library", ["torchvision", "timm", "transformers"])
def test_a_missing_library_says_how_to_install_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # makes Python's import of it fail as if it were not there
    kind = "hf" if library == "transformers" else library
    with pytest.raises(ModelError, match=f"pip install {library}"):
        load_model(f"{kind}:anything")


def test_a_timm_model_gets_its_own_image_size() -> None:
    declare_torchvision_ops()
    loaded = load_model("timm:test_vit")
    assert isinstance(loaded.model, nn.Module)
    assert tuple(loaded.example_inputs.shape) == (1, 3, 160, 160)
    logits = loaded.model(loaded.example_inputs)
    assert tuple(logits.shape) == (1, 1000)


@pytest.mark.parametrize(
    ("name", "size"), [("squeezenet1_1", 224), ("efficientnet_b1", 240), ("lraspp_mobilenet_v3_large", 520)]
)
def test_a_torchvision_model_gets_its_own_image_size(name: str, size: int) -> None:
    declare_torchvision_ops()
    pytest.importorskip("torchvision")  # not among the tests' requirements
    loaded = load_model(f"torchvision:{name}")
    assert tuple(loaded.example_inputs.shape) == (1, 3, size, size)
    with pytest.raises(ModelError, match="Did you mean"):
        load_model(f"torchvision:{name}s")


def test_a_program_file(tmp_path: Path) -> None:
    program = capture(nn.Linear(4, 2), torch.ones(3, 4), dynamic="batch")
    program.save(tmp_path / "program.pt2")
    loaded = load_model(str(tmp_path / "program.pt2"))
    assert isinstance(loaded.model, Program)
    assert torch.equal(loaded.model(torch.ones(5, 4)), program(torch.ones(5, 4)))
    with pytest.raises(ModelError, match="holds its own weights"):
        load_model(str(tmp_path / "program.pt2"), tmp_path / "program.pt2")


@pytest.mark.parametrize("file", ["weights.pt", "checkpoint.pt", "weights.safetensors"])
def test_a_state_dict_is_loaded(factories: Path, tmp_path: Path, file: str) -> None:
    state = {"linear.weight": torch.full((2, 4), 0.5), "linear.bias": torch.tensor([1.0, 2.0])}
    if file.endswith(".safetensors"):
        from safetensors.torch import save_file

        save_file(state, tmp_path / file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if file == "checkpoint.pt" else state, tmp_path / file)
    loaded = load_model(f"{factories}:alone", tmp_path / file)
    assert torch.equal(state_of(loaded)["linear.weight"], state["linear.weight"])
    assert torch.equal(state_of(loaded)["linear.bias"], state["linear.bias"])


class Opaque:
    pass


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"linear.weight": torch.ones(2, 4)}, "it lacks linear.bias"),
        ({"linear.weight": torch.ones(2, 4), "linear.bias": torch.ones(2), "x": torch.ones(1)}, "the model has no x"),
        ({"linear.weight": torch.ones(2, 5), "linear.bias": torch.ones(2)}, "other shapes in linear.weight"),
        ([1, 2], "holds no state dict"),
        (Opaque(), "cannot be read as weights"),
    ],
)
def test_a_state_dict_that_does_not_fit(factories: Path, tmp_path: Path, state: object, says: str) -> None:
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=says):
        load_model(f"{factories}:alone", tmp_path / "weights.pt")


class TestTransformersFolder:
    @pytest.fixture(autouse=True)
    def torchvision_ops(self) -> None:
        declare_torchvision_ops()

    def test_weights_and_task_head_are_kept(self, tmp_path: Path) -> None:
        import transformers

        config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        config.intermediate_size, config.num_labels = 32, 3
        original: Any = transformers.BertForSequenceClassification(config)
        original.save_pretrained(tmp_path)
        loaded = load_model(f"hf:{tmp_path}")
        assert isinstance(loaded.model, transformers.BertForSequenceClassification)
        assert set(loaded.example_inputs) == {"input_ids", "attention_mask"}
        assert loaded.dynamic == {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            wanted, got = original.eval()(**loaded.example_inputs).logits, loaded.model(**loaded.example_inputs).logits
        assert torch.equal(wanted, got)

    def test_a_config_alone_gets_random_weights(self, tmp_path: Path) -> None:
        import transformers

        config = transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=32,
            patch_size=8,
        )
        config.save_pretrained(tmp_path)
        loaded = load_model(f"hf:{tmp_path}")
        assert isinstance(loaded.model, transformers.ViTModel)
        assert tuple(loaded.example_inputs["pixel_values"].shape) == (2, 3, 32, 32)
        assert loaded.dynamic is None

    def test_an_encoder_decoder_gets_both_inputs(self, tmp_path: Path) -> None:
        import transformers

        config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        config.save_pretrained(tmp_path)
        loaded = load_model(f"hf:{tmp_path}")
        assert isinstance(loaded.model, nn.Module)
        assert set(loaded.example_inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
        assert isinstance(loaded.dynamic, dict)
        assert loaded.dynamic["decoder_input_ids"][1] != loaded.dynamic["input_ids"][1]
        with torch.no_grad():
            output = loaded.model(**loaded.example_inputs)
        assert output.last_hidden_state.shape[-1] == 16
        assert "past_key_values" not in output

    def test_a_folder_without_a_config(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"holds no config.json"):
            load_model(f"hf:{tmp_path}")

    def test_a_damaged_config(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{]")
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(f"hf:{tmp_path}")
