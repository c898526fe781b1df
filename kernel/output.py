# SPDX-License-Identifier: GPL-2.0
"""What the programs of kernel/ print and how they run others: a progress line on a terminal, one
line a step elsewhere, commands with V=1. Change it when a program has to say something new."""
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
BUILD = os.path.join(ROOT, "build", "kernel")
LOGS = os.path.join(ROOT, "build", "log")
PROGRAM = "kernel/" + os.path.basename(sys.argv[0])
VERBOSE = os.environ.get("V", "0") not in ("", "0")


class Failure(Exception):
    """Carries `what: why`, printed without a traceback; exit status 1."""


class Usage(Failure):
    """Carries `what: why` of a wrong command line; exit status 2."""


def shorten(path):
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path


def say(text):
    print(text, flush=True)


def show_command(command):
    if VERBOSE:
        print("+ " + " ".join(command), file=sys.stderr, flush=True)


class Progress:
    """One step that takes a while: `with Progress("what") as p: p.note("now this")`."""

    def __init__(self, what):
        self.what, self.start, self.shown = what, time.monotonic(), 0.0
        self.terminal = sys.stdout.isatty() and not VERBOSE

    def __enter__(self):
        if self.terminal:
            self.note("")
        return self

    def note(self, text):
        now = time.monotonic()
        if self.terminal and now - self.shown >= 0.2:
            self.shown = now
            line = f"{self.what} ({now - self.start:.0f} s) {text}"
            width = shutil.get_terminal_size().columns
            print("\r\033[K" + line[:width - 1], end="", flush=True)

    def __exit__(self, kind, *_):
        if self.terminal:
            print("\r\033[K", end="")
        if kind is None:
            say(f"{self.what}: {time.monotonic() - self.start:.0f} s")


def environment():
    """The environment without what would make git or make behave as on one machine only."""
    drop = ("GIT_", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "KBUILD_", "KCONFIG_", "ARCH", "CROSS_COMPILE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    env.update(LC_ALL="C", GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull, GIT_CONFIG_COUNT="1",
               GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*")
    return env


def run(command, env=None, check=True, text=True, **options):
    """Run to the end and return the CompletedProcess; Failure with the last of its stderr."""
    show_command(command)
    try:
        done = subprocess.run(command, env={**environment(), **(env or {})}, text=text, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    except FileNotFoundError:
        raise Failure(f"{command[0]}: not found: run scripts/setup kernel") from None
    if check and done.returncode:
        error = done.stderr if text else done.stderr.decode(errors="replace")
        why = error.strip().splitlines()[-3:] or [f"exit status {done.returncode}"]
        raise Failure(f"{' '.join(command[:6])}: " + "; ".join(why))
    return done


@contextlib.contextmanager
def locked(path, what, shared=False):
    """Hold the lock file, alone or with others; the kernel gives it back however this program ends."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a", encoding="ascii") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another program that uses {what}")
            fcntl.flock(file, kind)
        yield


def main_of(function):
    """Run a program's main, with every Failure as `program: what: why`."""
    try:
        sys.exit(function())
    except Usage as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        sys.exit(2)
    except Failure as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
