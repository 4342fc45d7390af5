"""The report as text and as a page: figures are right, everything is shown, nothing is fetched or injected."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fxopt.choose import Candidate
from fxopt.display import report_parts, show
from fxopt.errors import ExportError
from fxopt.export.census import Census
from fxopt.export.compare import OutputError
from fxopt.export.measure import Measurement
from fxopt.html import comparison_charts, html
from fxopt.layers import LayerRow
from fxopt.report import ModelFigures, Report
from fxopt.summary import (
    Row,
    bytes_text,
    count_text,
    error_cells,
    float_reasons,
    layer_cells,
    notable_layers,
    precisions_text,
    ratio,
    seconds_text,
    summary_rows,
)

LAYERS = (
    LayerRow("conv", "aten.conv2d.default", "int8", 118_000_000, 0.00125, 0.0005, 41.25),
    LayerRow("fc", "aten.linear.default", "float", 512_000, 0.00001, None, math.inf, "it is <small>"),
)
REPORT = Report(
    model="<script>alert(1)</script>",
    recipe="int8",
    target="x86",
    opset=21,
    inputs=("x: float32[batch, 3, 224, 224]",),
    outputs=("logits: float32[batch, 1000]",),
    baseline=ModelFigures(46_800_000, 11_690_000, 1_814_000_000, 0.698),
    result=ModelFigures(11_700_000, 11_690_000, 1_814_000_000, 0.696),
    differences=(OutputError("logits", 0.2, 0.01, 33.1, 0.98),),
    proof=(OutputError("logits", 0.0, 0.0, math.inf, 1.0),),
    census=Census({"QLinearConv": 20, "QLinearAdd": 8, "Gemm": 1}, {"conv": "QLinearConv"}, float_compute=("fc",)),
    candidates=(Candidate("static", Measurement(0.0125, 0.03, 61, 1, 0.034), 33.14),),
    latency=Measurement(0.0125, 0.03, 61, 1, 0.034),
    layers=LAYERS,
    float_reasons={"fc": "it is <small>", "mul": "no integer kernel", "mul_1": "no integer kernel"},
    delegated={"aten.roll.default": ("roll", "roll_1")},
    seconds={"capture": 2.1, "validate": 1.4},
    history=("FoldBatchNorm()",),
    notes=("Dimension 1 of 'x' is fixed.", "Float: fc: it is <small>."),
)


class Page(HTMLParser):
    """Collects the text, the tags and the attributes of a page; checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self.addresses = "", [], []  # type: tuple[str, list[str], list[str]]
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_part() -> None:
    text = Page(html(REPORT)).text
    for part in (
        *("46.8 MB", "11.7 MB", "4.00x smaller", "30 ms", "12.5 ms", "2.40x faster", "1.81 G", "-0.002"),
        *("33.1 dB", "exact", "98 %", "28 (QLinearConv 20, QLinearAdd 8)", "aten.roll.default (2)"),
        *("no integer kernel", "mul, mul_1", "FoldBatchNorm()", "Dimension 1 of 'x' is fixed.", "2.1 s", "capture"),
        *("118 M", "conv2d", "1.25 ms", "500 µs", "41.2 dB", "1 int8, 1 float"),
        *REPORT.inputs,
        *REPORT.outputs,
    ):
        assert part in text, part
    assert "Float: fc" not in text  # the section on what stayed float says it


def test_nothing_of_the_model_is_markup_and_nothing_is_fetched() -> None:
    text = html(REPORT)
    page = Page(text)
    assert set(page.tags).isdisjoint({"script", "link", "img", "iframe", "object", "form"})
    assert page.text.count("<script>alert(1)</script>") == 2  # title and heading, as text
    assert "it is <small>" in page.text
    assert "What was tried" in page.text and "2.40x" in page.text and "33.1 dB" in page.text
    assert page.addresses == []
    assert not re.search(r"url\(|@import|https?://", text)


def test_a_long_table_of_layers_is_folded_below_what_matters() -> None:
    assert "details" not in Page(html(REPORT)).tags
    many = tuple(replace(LAYERS[0], name=f"conv_{i}", error=50.0 - i) for i in range(40))
    page = Page(html(replace(REPORT, layers=many)))
    assert page.tags.count("details") == 1 and "All 40 layers" in page.text
    assert page.text.count("conv_39") == 2 and page.text.count("conv_20") == 1  # the worst one is above, too


def test_the_terminal_shows_few_layers(capsys: pytest.CaptureFixture[str]) -> None:
    many = tuple(replace(LAYERS[0], name=f"conv_{i}", error=50.0 - i) for i in range(40))
    show(*report_parts(replace(REPORT, layers=many)))
    shown = capsys.readouterr().out
    assert "Layers: 40 int8" in shown and shown.count("conv_") == 6 and "conv_39" in shown


def test_notable_layers_are_the_least_exact_and_then_the_slowest() -> None:
    def row(name: str, error: float | None, before: float, after: float | None, precision: str = "int8") -> LayerRow:
        return LayerRow(name, "aten.conv2d.default", precision, 1, before, after, error)

    rows = [
        row("a", 40, 1.0, 0.4),
        row("b", 20, 1.0, 0.1),
        row("c", 30, 1.0, 0.1),
        row("d", -math.inf, 9.0, 0.9),
        row("e", None, 1.0, None),  # no time as it is
        row("f", 60, 1.0, 0.3),
        row("g", math.inf, 0.35, 5.0, "float"),
        row("h", 50, 1.0, 0.2),
    ]
    assert [row.name for row in notable_layers(rows)] == ["d", "b", "c", "a", "g", "f"]
    assert notable_layers([]) == []
    assert precisions_text(rows) == "7 int8, 1 float"


def test_layer_cells_are_empty_where_nothing_was_measured() -> None:
    row = LayerRow("add", "aten.add.Tensor", "int8", 0)
    assert layer_cells(row) == ("add", "add", "int8", "", "", "", "", "")
    assert layer_cells(LAYERS[1]) == ("fc", "linear", "float", "512 k", "10 µs", "", "exact", "it is <small>")


def test_a_float_report_has_no_comparison() -> None:
    figures = ModelFigures(1000, 10, 20)
    report = replace(
        REPORT,
        recipe="float",
        is_float=True,
        baseline=figures,
        result=figures,
        differences=(),
        float_reasons={},
        layers=(),
    )
    text = Page(html(replace(report, latency=None, delegated={}, history=(), notes=()))).text
    assert "Output errors" not in text
    assert "What stayed float" not in text
    assert "1 kB" in text


def test_bars_are_in_proportion() -> None:
    size, latency = comparison_charts(REPORT)
    assert [bar.percent for bar in size.bars] == [100, 25]
    assert [bar.percent for bar in latency.bars] == [100, pytest.approx(41.67)]


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = REPORT.to_html(tmp_path / "report.html")
    assert path.read_text("utf-8") == html(REPORT)
    with pytest.raises(ExportError, match="Cannot write"):
        REPORT.to_html(tmp_path / "no" / "report.html")
    assert list(tmp_path.iterdir()) == [path]


def test_summary_rows() -> None:
    rows = {row.label: row for row in summary_rows(REPORT)}
    assert rows["file size"] == Row("file size", "46.8 MB", "11.7 MB", "4.00x smaller")
    assert rows["parameters"].change == ""
    assert rows["latency, 1 thread"].change == "2.40x faster"
    assert rows["metric"].change == "-0.002"


def test_reasons_are_grouped_the_most_frequent_first() -> None:
    many = {f"n{i}": "b" for i in range(5)} | {"m": "a"}
    first, second = float_reasons(many)
    assert (first.text, first.count, first.names) == ("b", 5, "n0, n1, n2 and 2 more")
    assert (second.text, second.count, second.names) == ("a", 1, "m")


def test_error_cells_of_infinite_figures() -> None:
    assert error_cells(OutputError("y", math.inf, math.inf, -math.inf, 0.0)) == ("y", "∞", "∞", "none", "0 %")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_500_000, "1.5 MB"), (999_999, "1 MB"), (2e12, "2 TB")],
)
def test_bytes_text(value: float, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12"), (11_690_000, "11.7 M"), (1.8e9, "1.8 G"), (999.6, "1 k")])
def test_count_text(value: float, text: str) -> None:
    assert count_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.34, "12.3 s"), (1234.5, "1234 s"), (0.9999, "1 s"), (0.0123, "12.3 ms"), (0.00063, "630 µs"), (0.001, "1 ms")],
)
def test_seconds_text(value: float, text: str) -> None:
    assert seconds_text(value) == text


def test_ratio() -> None:
    assert ratio(4, 1, "smaller", "larger") == "4.00x smaller"
    assert ratio(1, 2, "faster", "slower") == "2.00x slower"
    assert ratio(1000, 1001, "fewer", "more") == ""
    assert ratio(0, 3, "fewer", "more") == ""
