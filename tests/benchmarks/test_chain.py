"""The chain from a teacher to an int8 file: its steps, its table, and what the chains of texts and sounds add."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.chain import run_seeds, summary
from benchmarks.chains.chain import Chain, Row, Shuffled
from benchmarks.chains.images import digits
from benchmarks.chains.pitch import tracking_statistics, turned
from benchmarks.chains.sentences import Reordered, encoder_chain, texts, with_layers
from benchmarks.real_models.packages import MissingPackageError
from benchmarks.real_models.sentences import SCORED, TRAIN, rated_sentences
from benchmarks.zoo_models.shim import declare_torchvision_ops
from fxopt import capture

DENSE, PRUNED = ["dense float", "dense int8"], "pruned, distilled"
TAUGHT = [PRUNED, f"{PRUNED}, int8", f"{PRUNED}, trained int8"]
VOCABULARY = 100


def check(rows: list[Row], third: str, share: float) -> None:
    """Check what holds of every chain: its steps, that each makes the file smaller, and that both runtimes agree."""
    assert [row.step for row in rows] == [*DENSE, third, *TAUGHT]
    whole, whole8, untaught, taught, taught8, trained8 = rows
    assert whole.macs == whole8.macs == 1 and abs(untaught.macs - share) < 0.02
    assert all(row.macs == untaught.macs for row in (taught, taught8, trained8))
    assert whole.bytes > 2 * whole8.bytes and whole.bytes > 1.5 * taught.bytes > 3 * taught8.bytes
    assert abs(taught8.bytes - trained8.bytes) < 0.02 * taught8.bytes
    for row in rows:
        assert row.torch == pytest.approx(row.onnxruntime, abs=0.01)


def test_the_chain_on_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = digits(epochs=3.0)
    rows = run_seeds(chain, [0], tmp_path, timing=0.1)
    check(rows, "pruned, no teacher", share=0.25)
    assert rows[0].torch[0] > 0.3, "it is trained"
    assert capsys.readouterr().out.count("onnxruntime") == len(rows)
    assert {path.stem for path in (tmp_path / "seed0").iterdir()} == {row.step.replace(" ", "-") for row in rows}
    lines = summary(chain, rows).splitlines()
    assert len(lines) == 2 + len(rows) and "accuracy" in lines[0]
    assert all(line.startswith(row.step) for line, row in zip(lines[2:], rows, strict=True))


def test_a_table_of_two_seeds_and_two_metrics() -> None:
    chain = digits(epochs=1.0)
    chain = Chain(**{**vars(chain), "metrics": dict.fromkeys(("first", "second"), max)})
    rows = [
        Row(seed, step, 0.5, (0.5 + change, 0.2), (0.4, 0.1), size, 10.0, 2.0)
        for seed, change in enumerate((0.0, 0.02))
        for step, size in (("dense float", 4000), ("small", 1000))
    ]
    head, _, dense, small = summary(chain, rows).splitlines()
    assert "first, second" in head and "2 seeds" in head
    metrics = "51.00 ± 1.41 40.00 ± 0.00 20.00 ± 0.00 10.00 ± 0.00"
    assert dense.split() == f"dense float 0.50 {metrics} 4 kB 1.0x 2.00x 10 s".split()
    assert small.split()[-6:] == ["1", "kB", "4.0x", "2.00x", "10", "s"]


def small_bert() -> nn.Module:
    declare_torchvision_ops()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing a model of transformers warns of other packages
        config = transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            initializer_range=0.3,  # more than usual, for layers that change what they read
        )
        model: nn.Module = transformers.BertModel(config, add_pooling_layer=False)
    return model.eval()


def sentences(count: int, tokens: int, seed: int) -> dict[str, Tensor]:
    """Make sentences of random words, the second half of which are shorter."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, tokens, dtype=torch.int64)
    mask[count // 2 :, tokens // 2 :] = 0
    return {
        "input_ids": torch.randint(VOCABULARY, (count, tokens), generator=random),
        "attention_mask": mask,
    }


def nearness(model: Callable[..., Any]) -> float:
    """Return the mean cosine between the embeddings of a model and of the original."""
    item = sentences(8, 12, seed=9)
    mask = item["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        found, exact = ((each(**item)["last_hidden_state"] * mask).sum(1) for each in (model, small_bert()))
    return float(functional.cosine_similarity(found, exact).mean())


@pytest.mark.slow
def test_the_chain_of_an_encoder(tmp_path: Path) -> None:
    items = [sentences(8, 6 + number, number) for number in range(8)]
    chain = encoder_chain(
        "small", "random words", small_bert, (0, 2), items, {"nearness": nearness}, items[0], epochs=4, round_to=4
    )
    rows = run_seeds(chain, [0], tmp_path, timing=0.1)
    assert [row.step for row in rows] == [*DENSE, "pruned, not trained", *TAUGHT]
    assert rows[0].torch[0] == pytest.approx(1) and rows[3].torch[0] > rows[2].torch[0] + 0.005
    for row in rows:
        assert row.torch == pytest.approx(row.onnxruntime, abs=0.01)


def test_an_encoder_keeps_the_layers_that_are_asked_for() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.ModuleList(nn.Linear(width, width) for width in (1, 2, 3))

    model = nn.ModuleDict({"embeddings": nn.Embedding(5, 1), "encoder": Encoder()})
    found = with_layers(model, (0, 2))
    assert [each.in_features for each in found.get_submodule("encoder.layer").children()] == [1, 3]
    assert {name for name, each in found.named_parameters() if not each.requires_grad} == {"embeddings.weight"}


def test_batches_in_a_new_order_hold_samples_with_their_labels_and_ids() -> None:
    samples = torch.arange(10.0).unsqueeze(1)
    torch.manual_seed(0)
    data = Shuffled(samples, torch.arange(10) % 3, batch=4, augment=lambda x: x + 100)
    first, second = ([torch.cat(part) for part in zip(*data, strict=True)] for _ in range(2))
    for values, labels, ids in (first, second):
        assert torch.equal(values[:, 0], ids + 100.0) and torch.equal(labels, ids % 3) and len(set(ids.tolist())) == 8
    assert len(data) == 2 and not torch.equal(first[2], second[2])
    assert [labels for _, labels, _ in Shuffled(samples, None, batch=5)] == [None, None]
    items = [{"x": value} for value in samples]
    orders = [[float(item["x"]) for item in Reordered(items)] for _ in range(2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(10))


def test_frames_are_turned_in_all_four_ways() -> None:
    frame = torch.tensor([[1.0, 2.0, 4.0]])
    torch.manual_seed(0)
    found = {tuple(each) for each in turned(frame.expand(100, 3)).tolist()}
    assert sorted(found) == [(-4, -2, -1), (-1, -2, -4), (1, 2, 4), (4, 2, 1)]


def test_batch_norms_of_the_teacher_follow_what_they_read() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, momentum=0.0))
    torch.manual_seed(0)
    program = capture(tracking_statistics(model.eval()), torch.randn(4, 1, 3, 3), dynamic="batch").train()
    before = program.module.get_buffer("1.running_mean").clone()
    program(torch.randn(8, 1, 3, 3) + 5)
    assert not torch.equal(program.module.get_buffer("1.running_mean"), before)


def test_what_is_scored_is_not_trained_on() -> None:
    try:
        trained = set(texts())
    except MissingPackageError as error:
        pytest.skip(str(error))
    assert not trained & set(rated_sentences()[0][TRAIN : TRAIN + SCORED]) and len(trained) > 4000
