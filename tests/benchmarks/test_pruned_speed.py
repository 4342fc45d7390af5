"""What the benchmark of pruned models says of its figures."""

from dataclasses import replace

import pytest

from benchmarks.pruned_speed import Row, failures, text

ROW = Row("net", 0.5, 0.505, 0.4, 0.01, pruned=2.0, int8=3.0, pruned_int8=5.4)


def test_gains_multiply_or_not() -> None:
    assert ROW.product == pytest.approx(0.9)
    assert failures(ROW) == []
    assert failures(replace(ROW, pruned_int8=5.0)) == ["the gains of net do not multiply"]
    assert failures(replace(ROW, pruned_int8=5.0, int8_is_float=True)) == []  # nothing to multiply


def test_what_misses_its_aim_is_named() -> None:
    alone = replace(ROW, int8=None, pruned_int8=None)
    assert alone.product is None and failures(alone) == []
    assert failures(replace(alone, pruned=0.9)) == ["net is slower than dense"]
    assert failures(replace(alone, macs=0.52)) == ["net has 52.0% of its operations left"]
    assert failures(("net", "PassError: no")) == ["net failed"]


def test_rows_have_all_columns() -> None:
    assert text(ROW) == "| net | 50.0% | 50.5% | 40.0% | 10.00 ms | 2.00x | 3.00x | 5.40x | 0.90 |"
    assert text(replace(ROW, int8=None, pruned_int8=None)).count("|") == 10
    assert text(("net", "PassError: no")).count("|") == 10
