# SPDX-License-Identifier: MIT
"""Prints a run: KTAP on stdout, and a progress line where a person watches.

What is printed of a case: its own TAP as nested results; its last lines when it failed; all of it
with -v.
"""
import shutil
import sys
import time

TAIL = 15
MOST = 200
# So many reasons of a failure are in the line of its result.
REASONS = 3


class Report:
    """The output of one run."""

    def __init__(self, verbose, log):
        self.verbose, self.log = verbose, log
        self.terminal = sys.stderr.isatty()
        self.number = self.failed = 0
        self.total = 0
        self.start = time.monotonic()
        self.shown = 0.0

    def say(self, text):
        """A line of KTAP."""
        self.clear()
        print(text, flush=True)

    def clear(self):
        """Take the progress line away."""
        if self.terminal and self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self.shown = 0.0

    def tick(self, what):
        """Show the progress line, at most twice a second."""
        now = time.monotonic()
        if not self.terminal or now - self.shown < 0.5:
            return
        filled = 20 * self.number // max(1, self.total)
        text = (f"[{'#' * filled}{'.' * (20 - filled)}] {self.number}/{self.total} "
                f"{what or 'the machine'} {now - self.start:.0f} s")
        width = shutil.get_terminal_size().columns
        print("\r\033[K" + text[:width - 1], end="", file=sys.stderr, flush=True)
        self.shown = now

    def begin(self, what, total):
        """The head: what runs, and how many results will come."""
        self.total = total
        self.say("KTAP version 1")
        self.say(f"# {what}")
        self.say(f"1..{total}")

    def result(self, name, verdict, output=(), seconds=None):
        """A top-level result, with what belongs to it before it."""
        self.number += 1
        tail = output[-TAIL:] if verdict.kind == "fail" else []
        shown = output if self.verbose else verdict.nested
        if not self.verbose and tail:
            shown = list(shown) + [f"# {last_part(line)}" for line in tail if line not in shown]
        for line in shown:
            self.say(f"    {line}")
        for reason in verdict.reasons[1 if verdict.kind == "skip" else 0:]:
            self.say(f"# {name}: {reason}")
        if seconds is not None:
            self.say(f"# {name}: {seconds:.1f} s")
        if verdict.kind == "fail":
            self.failed += 1
            self.say(f"# {name}: log: {self.log}")
        word = "not ok" if verdict.kind == "fail" else "ok"
        self.say(f"{word} {self.number} - {name}{directive(verdict)}")

    def finish(self):
        """The exit status."""
        self.clear()
        return 1 if self.failed else 0


def last_part(line):
    """What of a line a terminal would show: some tests write progress into one line."""
    return line.rstrip("\r").rpartition("\r")[2][:MOST]


def directive(verdict):
    """What follows a result's name: a # inside would begin another."""
    if verdict.kind == "ok":
        return ""
    skip = verdict.kind == "skip"
    shown = verdict.reasons[:1 if skip else REASONS]
    more = "" if skip or len(verdict.reasons) <= REASONS else f"; and {len(verdict.reasons) - REASONS} more"
    return f" # {'SKIP ' if skip else ''}{'; '.join(shown).replace('#', '')}{more}"
