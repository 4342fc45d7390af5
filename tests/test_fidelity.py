"""The figures of max_drop against values computed by hand and by torch, and which samples judge."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.data import CalibrationData
from fxopt.errors import ModelError
from fxopt.export.to_onnx import to_onnx
from fxopt.fidelity import Fidelity, hold_out
from fxopt.graph.capture import capture
from fxopt.graph.program import Program
from fxopt.limits import Drop, Measure


class Logits(nn.Module):
    """Values and a count a row; `shift` is added to the first class."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.shift * torch.tensor([1.0, 0.0, 0.0]), x.sum(1, keepdim=True)


SAMPLES = [(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)),) for seed in range(3)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Program]:
    folder = tmp_path_factory.mktemp("files")
    programs = [capture(Logits(shift), SAMPLES[0], dynamic="batch") for shift in (0.0, 0.5)]
    for name, program in zip(("float", "other"), programs, strict=True):
        to_onnx(program, folder / name)
    return folder / "float", folder / "other", programs[1]


@pytest.mark.parametrize("measure", ["sqnr", "kl", "agreement", "metric"])
def test_figures(measure: Measure, files: tuple[Path, Path, Program]) -> None:
    float_file, other_file, program = files
    left = torch.cat([x for (x,) in SAMPLES]).double()
    right = left + torch.tensor([0.5, 0.0, 0.0])
    expected: dict[str, float] = {
        "sqnr": 10 * math.log10(float(left.square().sum()) / (15 * 0.25)),
        "kl": float(
            functional.kl_div(right.log_softmax(1), left.log_softmax(1), reduction="batchmean", log_target=True)
        ),
        "agreement": float((left.argmax(1) == right.argmax(1)).double().mean()),
        "metric": -0.5,
    }
    fidelity = Fidelity(Drop(measure, 0.5), float_file, SAMPLES, lambda net: float(net(torch.zeros(1, 3))[0][0, 0]))
    assert fidelity.figure(other_file, program) == pytest.approx(expected[measure], abs=1e-6)


def test_classes_are_needed_for_what_compares_them(tmp_path: Path) -> None:
    x = torch.ones(2, 1)
    program = capture(nn.Linear(1, 1), x, dynamic="batch")
    to_onnx(program, tmp_path / "m")
    with pytest.raises(ModelError, match="no output has classes"):
        Fidelity(Drop("kl", 0.1), tmp_path / "m", [(x,)]).figure(tmp_path / "m", program)


@pytest.mark.parametrize(("batches", "held"), [(127, False), (128, True), (200, True)])
def test_samples_are_held_out_where_there_are_plenty(batches: int, held: bool) -> None:
    program = capture(Logits(), torch.ones(2, 3), dynamic="batch")
    data = CalibrationData([torch.full((1, 3), float(number)) for number in range(batches)], program)
    rest, judged = hold_out(data)
    assert [float(x[0, 0]) for (x,) in judged] == list(range(32))
    left = [item[0] for item in rest if isinstance(item, tuple)]
    assert [float(x[0, 0]) for x in left] == list(range(32 if held else 0, batches))
