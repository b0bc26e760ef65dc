"""A bar on a terminal, plain lines everywhere else."""

import io
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable

import pytest

from pipeline.terminal import Terminal

PROGRAM = """
from pipeline.terminal import Terminal
terminal = Terminal(is_speaking={speaks})
terminal.say("before")
terminal.begin(3, 9)
terminal._bar and setattr(terminal._bar, "mininterval", 0)
for step in range(4, 10):
    terminal.show(step)
    if step == 6:
        terminal.say("line of step 6")
terminal.close()
print("after")
"""


def in_terminal(command: list[str], columns: int = 80) -> str:
    """What a program writes to a terminal; one with 0 columns does not know its width."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    process = subprocess.Popen(command, stdout=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            said += os.read(ours, 4096)
        except OSError:  # EIO: the last writer has gone
            break
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return said.decode()


def screen(said: str) -> list[str]:
    """The lines as they stand in the end: what comes behind a carriage return covers what was there."""
    lines = []
    for line in said.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            part = re.sub(r"\x1b\[[A-Z]", "", part)
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


@pytest.mark.parametrize("columns", [80, 0])
def test_terminal_shows_a_bar_with_lines_above_it(columns: int) -> None:
    said = in_terminal([sys.executable, "-c", PROGRAM.format(speaks=True)], columns)
    assert all(f"step {step}/9" in said for step in range(3, 10))  # drawn again and again
    shown = screen(said)
    assert shown[:2] == ["before", "line of step 6"] and shown[3] == "after"
    assert re.fullmatch(r"step 9/9 100% \|.+\| left 00:00", shown[2])


def test_rank_that_does_not_speak_draws_nothing() -> None:
    assert screen(in_terminal([sys.executable, "-c", PROGRAM.format(speaks=False)])) == ["after", ""]


def test_pipe_gets_lines_alone() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(speaks=True)], capture_output=True, check=True)
    assert done.stdout == b"before\nline of step 6\nafter\n" and done.stderr == b""


def test_bar_follows_a_run_that_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        isatty: Callable[[], bool] = lambda _: True

    monkeypatch.setattr(sys, "stdout", Tty())
    terminal = Terminal(is_speaking=True)
    terminal.begin(0, 9)
    for step in (5, 6, 3):
        terminal.show(step)
    assert terminal._bar.n == 3
    terminal.close()
