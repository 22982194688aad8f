"""Bars are for somebody who looks: a terminal shows them, and elsewhere nothing is written."""

import os
import subprocess
import sys

import pytest

from minisd.progress import progress, watched

COUNT = """
from minisd.progress import progress
for _ in progress(range(3), mininterval=0): pass
with progress(total=2, mininterval=0) as bar: bar.update(2)
"""
pty, termios = (
    pytest.importorskip(name, reason="terminals of Unix") for name in ("pty", "termios")
)


def environment(wish):
    others = {k: v for k, v in os.environ.items() if k not in ("MINISD_PROGRESS", "TQDM_DISABLE")}
    return others if wish is None else others | {"MINISD_PROGRESS": wish}


def on_a_terminal(wish, code=COUNT):
    """Run the code with standard error on a terminal, and return what that has shown."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environment(wish), check=True)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1024):
            shown += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    return shown.decode()


def piped(wish, code=COUNT):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment(wish), check=True
    )
    return (done.stdout + done.stderr).decode()


@pytest.mark.slow
def test_a_terminal_shows_it_and_a_pipe_nothing():
    assert "3/3" in on_a_terminal(None) and "2/2" in on_a_terminal(None)
    assert piped(None) == ""


@pytest.mark.slow
def test_the_environment_decides_otherwise():
    assert on_a_terminal("0") == ""
    assert "3/3" in piped("1")


class Kernel:
    """Standard error as a notebook's kernel has it."""

    __module__ = "ipykernel.iostream"

    def isatty(self):
        return False


@pytest.mark.parametrize(
    ("stderr", "wish", "shown"),
    [
        (Kernel(), None, True),
        (Kernel(), "0", False),
        (Kernel(), "1", True),
        (Kernel(), "", True),
        (None, None, False),
    ],
)
def test_a_notebook_shows_it_unless_told_otherwise(monkeypatch, stderr, wish, shown):
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.delenv("MINISD_PROGRESS", raising=False)
    if wish is not None:
        monkeypatch.setenv("MINISD_PROGRESS", wish)
    assert watched() == shown


def test_a_hidden_bar_still_yields_everything(monkeypatch):
    monkeypatch.setenv("MINISD_PROGRESS", "0")
    assert list(progress(iter("abc"), unit="letter")) == ["a", "b", "c"]


def test_only_one_module_imports_tqdm():
    import minisd

    root = os.path.dirname(minisd.__file__)
    found = []
    for folder, _, files in os.walk(root):
        for name in files:
            path = os.path.join(folder, name)
            if name.endswith(".py") and "tqdm import" in open(path, encoding="utf-8").read():
                found.append(name)
    assert found == ["progress.py"]
