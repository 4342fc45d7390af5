"""What counts as padding, and that figures of outputs leave it out."""

import pytest
import torch
from torch import Tensor, nn

from fxopt.graph.capture import capture
from fxopt.graph.padding import real_positions, run_without_padding, without_padding

TOKENS = torch.arange(8).reshape(2, 4)
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_the_attention_mask_tells_real_positions(dtype: torch.dtype) -> None:
    real = real_positions(["input_ids", "attention_mask"], [TOKENS, MASK.to(dtype)])
    assert real is not None and torch.equal(real, MASK.bool())
    assert torch.equal(without_padding(TOKENS, real), torch.tensor([0, 1, 2, 4, 5]))
    value = torch.randn(2, 4, 3)
    assert torch.equal(without_padding(value, real), torch.stack([*value[0, :3], *value[1, :2]]))


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("token_type_ids", MASK),
        ("attention_mask", torch.ones_like(MASK)),
        ("attention_mask", torch.zeros_like(MASK)),
        ("attention_mask", MASK[:, None, None]),
        ("attention_mask", torch.where(MASK > 0, 0.0, -torch.inf)),  # what is added to scores
    ],
)
def test_what_tells_nothing(name: str, mask: Tensor) -> None:
    assert real_positions(["input_ids", name], [TOKENS, mask]) is None


def test_values_of_other_shapes_stay_whole() -> None:
    for value in (torch.randn(2, 3), torch.randn(4, 2, 4), torch.tensor(1.0), None, 3):
        assert without_padding(value, MASK.bool()) is value
    assert without_padding(TOKENS, None) is TOKENS


class Tagger(nn.Module):
    """A value for each token, and one for each sequence."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        tags = input_ids.float().unsqueeze(-1) * torch.ones(5)
        return tags, (tags * attention_mask.unsqueeze(-1)).sum(1)


def test_outputs_of_a_program_without_padding() -> None:
    program = capture(Tagger(), {"input_ids": TOKENS, "attention_mask": MASK}, dynamic="batch")
    tags, sums = run_without_padding(program, [(TOKENS, MASK)])
    assert torch.equal(tags[:, 0], torch.tensor([0.0, 1.0, 2.0, 4.0, 5.0]))
    assert torch.equal(sums, Tagger()(TOKENS, MASK)[1])
