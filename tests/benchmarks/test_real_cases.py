"""Models with trained weights among the peers' cases: how their data is cut, and how their tasks call a file."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.peer_tools.cases import SENTENCE_TOKENS
from benchmarks.peer_tools.real_cases import ALL_CASES, REAL_CASES, one_by_one, real_case, singles
from benchmarks.real_models import RealModel
from benchmarks.real_models.sentences import MINILM_SENTIMENT

IMAGES = torch.arange(10.0).view(10, 1)


def evaluate(model: Any) -> float:
    return float(model(IMAGES)[0].sum())


MODEL = RealModel(
    name="model",
    build=torch.nn.Identity,
    inputs=lambda n: (IMAGES[:n],),
    dynamic="batch",
    calibration=lambda: [(IMAGES[:4],), (IMAGES[4:8],)],
    evaluate=evaluate,
    metric="sum",
    data="numbers",
)


def test_calibration_and_held_out_samples_are_apart() -> None:
    case = real_case(MODEL, "cnn")
    values = [[float(item[0]) for item in case.samples(split, 7)] for split in ("calibration", "held-out")]  # type: ignore[index]
    assert values == [[0, 1, 2, 3, 4, 5, 0], [6, 7, 6, 7, 6, 7, 6]]


def test_the_task_calls_a_file_of_batch_one() -> None:
    calls: list[tuple[int, ...]] = []

    def run(x: Tensor) -> Sequence[Tensor]:
        calls.append(tuple(x.shape))
        return (2 * x,)

    case = real_case(MODEL, "cnn")
    assert case.evaluate is not None and case.evaluate(run) == 90.0
    assert calls == [(1, 1)] * 10 and case.metric == "sum"


@pytest.mark.parametrize("length", [5, SENTENCE_TOKENS + 3])
def test_sentences_have_one_length_in_files_and_their_own_outside(length: int) -> None:
    shapes: set[tuple[int, ...]] = set()

    def run(ids: Tensor, mask: Tensor) -> Sequence[Tensor]:
        shapes.add(tuple(ids.shape))
        return ((ids * mask)[..., None].repeat(1, 1, 3),)

    ids, mask = torch.ones(2, length, dtype=torch.int64), torch.ones(2, length, dtype=torch.int64)
    case = REAL_CASES[MINILM_SENTIMENT.name]
    (hidden,) = one_by_one(run, case.samples.args[1])(input_ids=ids, attention_mask=mask)  # type: ignore[attr-defined]
    assert shapes == {(1, SENTENCE_TOKENS)} and hidden.shape == (2, length, 3)
    assert int(hidden.sum()) == 2 * 3 * min(length, SENTENCE_TOKENS)


def test_singles_keep_the_names() -> None:
    found = singles({"a": torch.arange(2), "b": torch.arange(4).view(2, 2)})
    assert [list(item) for item in found] == [["a", "b"]] * 2
    assert found[1]["b"].tolist() == [[2, 3]]  # type: ignore[call-overload]


def test_cases_go_by_their_names() -> None:
    assert all(case.name == name for name, case in ALL_CASES.items()) and len(REAL_CASES) == 9
    assert all(case.evaluate is not None and case.metric for case in REAL_CASES.values())
