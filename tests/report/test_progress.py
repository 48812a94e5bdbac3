from __future__ import annotations

import io

from rich.console import Console

from finepruning.report.progress import (
    PlainProgress,
    TerminalProgress,
    TimeLeft,
    clock_text,
    kind_of,
    progress_for,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_of_one_kind_are_priced_alike() -> None:
    assert kind_of("round 2/4: search") == kind_of("round 13/40: search") != kind_of("round 2/4: fine-tuning")
    clock = Clock()
    left = TimeLeft(clock)
    left.plan([("dense", 10), ("round 1/2: search", 4), ("round 2/2: search", 4)])
    assert left.seconds() is None
    left.start("dense")
    clock.now += 20
    left.advance(10)
    left.start("round 1/2: search")
    clock.now += 3
    left.advance(1)
    assert left.seconds() == 3 * 3 + 4 * 3
    clock.now += 9
    left.advance(3)
    assert left.seconds() == 4 * 3


def test_a_kind_not_seen_yet_is_priced_like_all_so_far() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left.plan([("dense", 10), ("search", 5)])
    clock.now += 50  # getting ready is no part of any unit
    left.start("dense")
    clock.now += 10
    left.advance(5)
    assert left.seconds() == 5 * 2 + 5 * 2


def test_units_that_a_phase_skips_need_no_time() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left.plan([("a", 10), ("b", 1)])
    left.start("a")
    clock.now += 4
    left.advance(2)
    left.start("b")
    assert left.seconds() == 2


def test_plain_lines_for_a_pipe() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = PlainProgress(stream, clock)
    progress.plan([("dense fine-tuning", 100)])
    progress.start("dense fine-tuning")
    for _ in range(40):
        clock.now += 1
        progress.advance(1, loss=0.5)
    progress.message("epoch 1: accuracy 0.9")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "dense fine-tuning (100 steps)"
    assert lines[1] == "  dense fine-tuning: 15/100  loss 0.5  about 1:25 left"
    assert lines[-1] == "  epoch 1: accuracy 0.9"
    assert len(lines) == 4  # at most one progress line in 15 seconds
    assert "\x1b" not in stream.getvalue()


def test_what_is_no_terminal_gets_plain_lines() -> None:
    assert isinstance(progress_for(io.StringIO()), PlainProgress)


def test_clock_text() -> None:
    assert [clock_text(s) for s in (0.4, 65, 3600, 7384)] == ["0:00", "1:05", "1:00:00", "2:03:04"]


def test_a_narrow_terminal_keeps_the_line_whole() -> None:
    for width in (70, 80, 100, 140):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=True, width=width, highlight=False)
        progress = TerminalProgress(console)
        progress.plan([("round 10/10: fine-tuning", 1480)])
        progress.start("round 10/10: fine-tuning")
        progress.advance(1234, loss=0.1234)
        assert progress._bars is not None
        progress._bars.refresh()  # else the next one is a tenth of a second away
        progress.close()
        shown = stream.getvalue()
        assert "1234/1480" in shown
        assert ("loss 0.1234" in shown) == (width >= 100)
