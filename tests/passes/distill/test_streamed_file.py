"""A safetensors file written part by part: safetensors reads it as one that it wrote itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fxopt.passes.distill.streamed_file import StreamedFile


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    shape=st.lists(st.integers(1, 3), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float16]),
)
def test_read_by_safetensors(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], shape: list[int], dtype: torch.dtype
) -> None:
    path = tmp_path_factory.mktemp("streamed") / "file.safetensors"
    parts = [torch.randn(count, *shape).to(dtype) for count in counts]
    ids = torch.randperm(sum(counts)) - 2
    with path.open("wb") as file:
        stream = StreamedFile(file, dtype)
        for part, part_ids in zip(parts, torch.split(ids, counts), strict=True):
            stream.add(part, part_ids)
        assert stream.shape == torch.Size(shape)
        stream.close({"what": "logits"})
    found = load_file(path)
    assert set(found) == {"values", "ids"}
    torch.testing.assert_close(found["values"], torch.cat(parts), rtol=0, atol=0)
    torch.testing.assert_close(found["ids"], ids, rtol=0, atol=0)


def test_the_header(tmp_path: Path) -> None:
    path, other = tmp_path / "file.safetensors", tmp_path / "other.safetensors"
    values, ids = torch.randn(2, 3), torch.tensor([1, 0])
    with path.open("wb") as file:
        stream = StreamedFile(file, torch.float32)
        stream.add(values.T.contiguous().T, ids)  # not contiguous in memory
        stream.close({"what": "x" * 10_000})
    save_file({"values": values, "ids": ids}, other)
    assert path.stat().st_size == 4096 + 2 * 3 * 4 + 2 * 8
    with safe_open(path, "pt") as found, safe_open(other, "pt") as expected:
        assert found.metadata() == {"what": "x" * 256}
        for name in ("values", "ids"):
            assert torch.equal(found.get_tensor(name), expected.get_tensor(name))
            assert found.get_slice(name).get_dtype() == expected.get_slice(name).get_dtype()
