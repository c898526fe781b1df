# SPDX-License-Identifier: MIT
"""What is shown of the runs: a progress line on a terminal, a line for each program that ended."""
import os
import shutil
import sys
import time


class Screen:
    """A progress line on a terminal; one line a program elsewhere."""

    def __init__(self, total):
        self.total, self.done = total, 0
        self.terminal = sys.stdout.isatty()
        self.started, self.shown = {}, 0.0

    def begin(self, program):
        self.started[str(program)] = time.monotonic()
        self.shown = 0.0
        self.tick()

    def tick(self):
        now = time.monotonic()
        if self.terminal and now - self.shown >= 1:
            self.shown = now
            width = shutil.get_terminal_size().columns
            filled = 20 * self.done // max(1, self.total)
            running = ", ".join(f"{name} {now - start:.0f} s" for name, start in self.started.items())
            text = f"[{'#' * filled}{'.' * (20 - filled)}] {self.done}/{self.total} {running}"
            print("\r\033[K" + text[:width - 1], end="", flush=True)

    def end(self, program, result, log_path):
        self.done += 1
        if self.terminal:
            print("\r\033[K", end="")
        seconds = time.monotonic() - self.started.pop(str(program), time.monotonic())
        counts = [f"{result.passed} passed"]
        if result.failures:
            counts.append(f"{len(result.failures)} failed")
        if result.skips:
            counts.append(f"{len(result.skips)} skipped")
        if result.failures or not self.terminal:
            word = "FAIL" if result.failures else "ok"
            print(f"{word:4} {program} ({', '.join(counts)}, {seconds:.1f} s)")
        for text in result.failures:
            print(f"     {text}")
        if result.failures:
            print(f"     log: {log_path}")
        sys.stdout.flush()


def shorten(path, root):
    """A path as the user would type it from the repository's root."""
    relative = os.path.relpath(path, root)
    return path if relative.startswith("..") else relative


def print_skips(skips):
    """One line for each reason of a program, with the tests that it skipped."""
    groups = {}
    for program, name, reason in skips:
        groups.setdefault((program, reason), []).append(name)
    if skips:
        print("skipped:")
    for (program, reason), names in groups.items():
        names = [name for name in names if name]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"     {program}: {names[0] + more + ': ' if names else ''}{reason}")
