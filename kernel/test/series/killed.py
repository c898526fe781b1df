#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A program of kernel/ that is killed leaves no make and no compiler behind."""
import os
import signal
import subprocess
import sys
import time

import tap

sys.path.insert(0, os.path.join(os.environ["INFILL_ROOT"], "kernel", "test"))
import pristine

# What kernel/build does while it compiles: make, and a program that make started, which says who it is.
PROGRAM = """
import compiler
compiler.Make("make.log", "a build").run(["make", "-f", "long"])
"""
MAKEFILE = """
all:
	@echo $$$$ $$PPID >pids.new && mv pids.new pids && exec sleep 60
"""
PATIENCE = 20


def until(what, condition):
    """Wait for something that other processes do."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not in {PATIENCE} s")
        time.sleep(0.01)


def state(pid):
    """The state of a process, as a letter; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def ended(pid):
    """True when a process runs no more; nobody may be there to collect it."""
    return state(pid) in ("", "Z")


def killed(number):
    folder = os.path.join(pristine.TMPDIR, f"killed-{number}")
    os.makedirs(folder)
    with open(os.path.join(folder, "long"), "w", encoding="ascii") as file:
        file.write(MAKEFILE)
    pids = os.path.join(folder, "pids")
    environment = {**os.environ, "PYTHONPATH": os.path.join(pristine.ROOT, "kernel")}
    with subprocess.Popen([sys.executable, "-B", "-c", PROGRAM], cwd=folder, env=environment,
                          stdout=subprocess.DEVNULL) as builder:
        try:
            until("make starts its first program", lambda: os.path.exists(pids))
        finally:
            builder.send_signal(number)
    with open(pids, encoding="ascii") as file:
        program, make = file.read().split()
    tap.equal(builder.returncode, -number, "how the builder ended")
    until("make ends", lambda: ended(make))
    until("its program ends", lambda: ended(program))


for row in (signal.SIGTERM, signal.SIGKILL):
    tap.add(f"ended by {row.name}", killed, row)

tap.run()
