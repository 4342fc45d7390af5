"""The log files and the progress bar."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxopt.training.log import LogFiles, Means, ProgressBar


def test_means_by_hand() -> None:
    means = Means()
    means.add({"loss": 1.0, "task": 4.0})
    means.add({"loss": 2.0, "task": 8.0})
    assert means.take() == {"loss": 1.5, "task": 6.0}
    means.add({"loss": 5.0, "task": 0.0})
    assert means.take() == {"loss": 5.0, "task": 0.0} and means.take() == {}


def row(step: int) -> dict[str, object]:
    return {
        "epoch": 1,
        "step": step,
        "mean_over": "steps",
        "learning_rate": 0.1,
        "loss": 2.0,
        "task": 2.0,
        "seconds": 0.5,
    }


def test_rows_behind_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    log = LogFiles(tmp_path, ["task"])
    log.start(0)
    for step in (1, 2, 3):
        log.write(row(step))
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"epoch": 1, "st')  # the process was killed here
    log.start(2)
    log.write(row(3))
    assert (tmp_path / "log.csv").read_text().splitlines() == [
        "epoch,step,mean_over,learning_rate,loss,task,metric,seconds",
        *(f"1,{step},steps,0.1,2.0,2.0,,0.5" for step in (1, 2, 3)),
    ]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    LogFiles(None, []).write(row(4))


@pytest.mark.parametrize(("terminal", "shown", "visible"), [("1", True, True), ("0", True, False), ("1", False, False)])
def test_the_bar_is_for_terminals(
    terminal: str, shown: bool, visible: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    with ProgressBar(10, 0, shown) as bar:
        bar.show(1, 5, 0.25, 0.9)
        bar.show(2, 7, 0.125)
    text = capsys.readouterr().err
    assert ("epoch 2: loss 0.125, metric 0.9" in text) == visible
    assert visible or text == ""
