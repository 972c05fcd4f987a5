"""Lines that fit the terminal, and how far long work is."""

import pytest

from clipcovid import terminal
from clipcovid.terminal import Countdown, fitted_line, format_duration, set_terminal_width, wrap_text

DESCRIPTION = """Fine-tune CLIP on images and captions: all of it, low-rank adapters, or one tower; judged by its scores.

    clipcovid finetune --data data/phantom --clip.model tiny --clip.pretrained none --method full
    clipcovid x

A last paragraph, of
two lines."""


@pytest.mark.parametrize("width", [40, 80, 160])
def test_a_description_fits_the_width(width):
    assert max(map(len, wrap_text(DESCRIPTION, width).split("\n"))) <= width


def test_wrapped_commands_can_be_pasted():
    command = wrap_text(DESCRIPTION, 60).split("\n\n")[1]
    assert command.replace(" \\\n", " ").split() == DESCRIPTION.split("\n\n")[1].split()
    assert all(line.endswith("\\") for line in command.split("\n")[:-2])


def test_wrapping_loses_no_word():
    assert wrap_text(DESCRIPTION, 200) == DESCRIPTION.replace("of\ntwo", "of two")


@pytest.mark.parametrize(("columns", "shown"), [(12, "a · b · z"), (31, "a · b · d · z"), (32, "a · b · long · z")])
def test_a_line_takes_what_the_terminal_has_room_for(columns, shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert fitted_line(["a", "b"], ["c" * 20, "d"], last=["z"]) == shown.replace("long", "c" * 20)


def test_what_must_be_said_is_said_on_any_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    assert (
        fitted_line(["epoch 1/10", "train/loss 0.5"], ["more"], last=["best"]) == "epoch 1/10 · train/loss 0.5 · best"
    )


def test_a_worker_fits_its_lines_to_the_drivers_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(terminal, "_columns", 0)
    assert fitted_line(["a"], ["b" * 60]).endswith("b")
    set_terminal_width(52)
    assert fitted_line(["a"], ["b" * 60]) == "a"


def test_the_time_left_follows_from_the_pieces_of_this_start(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("clipcovid.terminal.time.monotonic", lambda: now[0])
    countdown = Countdown("trial", 10)
    now[0] += 20
    assert countdown.line(6, "score 0.5", before=4) == "trial 6 of 10 · score 0.5 · 0:00:40 left"
    assert countdown.line(10, before=4) == "trial 10 of 10"
    assert Countdown("trial", 3).line(0) == "trial 0 of 3 · 0:00:00 left"


def test_the_clock_has_hours():
    assert [format_duration(0.4), format_duration(59.6), format_duration(3661)] == ["0:00:00", "0:01:00", "1:01:01"]
