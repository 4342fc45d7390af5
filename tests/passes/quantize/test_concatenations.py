"""Detector-style heads: coordinates and scores that are concatenated keep their scores."""

import torch
from torch import Tensor, nn

from fxopt.graph.interpret import sqnr
from fxopt.graph.program import Program
from fxopt.passes.quantize import Quantize, place
from fxopt.passes.quantize.concatenations import erasing_concatenations
from fxopt.target import TARGETS
from tests.passes.quantize.nets import Branches, images, program_of

X = images(4)


class Detector(nn.Module):
    """Boxes up to 640 and scores up to 1 on two scales, concatenated as [N, 4 + classes, places] and convolved on."""

    def __init__(self, size: float = 640.0) -> None:
        super().__init__()
        self.size = size
        self.stem, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2, 1)
        self.boxes, self.scores = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.boxes.weight.data *= size
        self.mix = nn.Conv2d(32, 32, 1)

    def head(self, x: Tensor) -> Tensor:
        joined = torch.cat([torch.relu(self.boxes(x)), torch.sigmoid(self.scores(x))], 1)
        return joined.flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return torch.cat([self.head(x), self.head(torch.relu(self.down(x)))], 2)


def scores(program: Program) -> Tensor:
    found: Tensor = program(X)
    return found[:, 16:]


def test_scores_survive_beside_coordinates() -> None:
    program = program_of(Detector(), X)
    quantized = Quantize([X])(program)
    assert sqnr(scores(program), scores(quantized)) > 30
    assert sqnr(program(X), quantized(X)) > 30


def test_the_reason_names_the_input_and_what_would_be_left_of_it() -> None:
    program = program_of(Branches(), X)
    placement = place(program, TARGETS["x86"])
    names = [node.name for node in program.graph.nodes if node.target is torch.ops.aten.cat.default]
    (cat, *others) = [node for node in program.graph.nodes if node.name in names]
    left, right = cat.args[0]
    extents = {left.name: (0.0, 640.0), right.name: (0.0, 1.0)}
    assert erasing_concatenations(program, placement, extents) == {
        cat.name: f"one scale for all its inputs would leave {right.name} 1 of 256 levels"
    }
    extents[right.name] = (0.0, 20.0)
    assert erasing_concatenations(program, placement, extents) == {} and others


def test_inputs_of_one_kind_stay_integer() -> None:
    program = program_of(Branches(), X)
    assert sum("cat" in note for note in Quantize([X])(program).notes) == 0


def test_an_input_that_is_always_zero_does_not_count() -> None:
    program = program_of(Branches(), X)
    cat = next(node for node in program.graph.nodes if node.target is torch.ops.aten.cat.default)
    left, right = cat.args[0]
    extents = {left.name: (0.0, 6.0), right.name: (0.0, 0.0)}
    assert erasing_concatenations(program, place(program, TARGETS["x86"]), extents) == {}
