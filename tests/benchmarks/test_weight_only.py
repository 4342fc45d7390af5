"""The decoder of the benchmark of weights alone: its texts, its committed weights, and the figures by hand."""

import math

import pytest
import torch

from benchmarks.real_models import language
from benchmarks.real_models.packages import MissingPackageError
from benchmarks.weight_only import divergence


def test_divergence_of_two_coins() -> None:
    exact, other = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.25, 0.75]]]).log()
    assert divergence(exact, other + 3.0) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert divergence(exact, exact) == 0


def test_texts_become_rows_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "lee_documents", lambda file: ["a" * 128, "b" * 130, "é"])
    rows = language.rows.__wrapped__("any")
    assert rows.shape == (2, language.CONTEXT + 1) and rows.dtype == torch.int64
    assert rows[0, -2:].tolist() == [ord("a"), ord("\n")] and rows[1].tolist() == [ord("b")] * 129


def test_committed_weights_tell_most_bytes() -> None:
    """The share of bytes of held-out news that are told; guessing the space would give 0.17."""
    assert language.WEIGHTS.stat().st_size < 2 * 2**20
    model = language.load()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    try:
        language.rows("lee.cor")
    except MissingPackageError as error:
        pytest.skip(str(error))
    assert 0.45 < language.evaluate(model) < 0.6
    assert 1.5 < language.bits(language.held_out_logits(model)) < 2.5
