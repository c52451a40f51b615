"""The table on stderr."""

import io
import sys

import pytest
from rich.progress import Progress

from vaentropy.errors import UsageError
from vaentropy.loggers import Console

ROW = {"running_elbo": -3.5, "running_entropy_sum": -4.0, "running_gap": 0.5, "learning_rate": 0.005, "seconds": 1.25}


def printed(rows, **options):
    stream = io.StringIO()
    with Console(stream=stream, **options) as log:
        for row in rows:
            log(row)
    return stream.getvalue().splitlines()


def row(epoch, **more):
    return {"epoch": epoch, "step": 10 * epoch, **ROW, **more}


def test_rows_that_were_evaluated_and_every_so_many_have_a_line(history):
    lines = printed([row(epoch, **({"held_out_elbo": -9.0} if epoch == 3 else {})) for epoch in range(1, 10)], every=4)
    assert [line.split()[0] for line in lines] == ["epoch", "3", "4", "8"]
    assert len({len(line) for line in lines}) == 1, "columns are not aligned"
    assert len(lines[0]) < 80, "a terminal breaks the lines"
    assert lines[1].split() == ["3", "30", "-3.5000", "-4.0000", "0.5000", "-9.0000", "5.00e-03", "1.2"]
    # What a row does not have leaves its column empty, and the others in their places.
    column = lines[0].index("held out")
    assert lines[2][column : column + 8].strip() == "" and lines[2].split()[-1] == lines[1].split()[-1]
    assert [line.split()[0] for line in printed(history.rows, every=99)] == ["epoch", "3", "5"]


def test_the_header_comes_again():
    lines = printed([row(epoch) for epoch in range(1, 46)], every=1)
    assert [number for number, line in enumerate(lines) if "epoch" in line] == [0, 21, 42]


def test_the_end_says_the_final_elbos(history):
    stream = io.StringIO()
    with Console(stream=stream, every=99, name="seed\x1b 1") as log:
        for each in history.rows:
            log(each)
        log.summary(history)
    lines = stream.getvalue().splitlines()
    assert all(line.startswith("seed\\x1b 1: ") for line in lines), "control characters reach the terminal"
    elbos = f"ELBO {history.train.elbo:.4f} (training data), {history.held_out.elbo:.4f} (held out)"
    assert lines[-1].endswith(f"after epoch 5: {elbos}, nats per data point")


def test_numbers_that_are_not_finite_are_shown():
    assert printed([row(1, running_elbo=float("nan"), running_gap=float("-inf"))], every=1)[1].split()[2:5] == [
        "nan",
        "-4.0000",
        "-inf",
    ]


def test_lines_stand_above_a_progress_bar(monkeypatch):
    # A bar puts its own stream in the place of stderr while it is drawn; what goes past that would tear it.
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Console(every=1) as log:
        with Progress() as bar:
            monkeypatch.setattr(sys, "stderr", through := io.StringIO())
            log(row(1))
            monkeypatch.setattr(sys, "stderr", terminal)
            assert bar.live
        assert "-3.5000" in through.getvalue() and "-3.5000" not in terminal.getvalue()


@pytest.mark.parametrize("every", [0, -1])
def test_wrong_numbers_of_epochs_are_refused(every):
    with pytest.raises(UsageError, match="every="):
        Console(every=every)
