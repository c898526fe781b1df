#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""A QEMU that says nothing, too much or nonsense, or fails, is noticed and ended. No machine is needed.

A shell script takes QEMU's place: it has the results' port as $port and the console as $console.
"""
import os
import sys
import time

import tap

LAB = os.path.join(os.environ["INFILL_ROOT"], "lab")
sys.path[:0] = [LAB, os.path.join(os.environ["INFILL_ROOT"], "guest")]
# pylint: disable=wrong-import-position
import data
import emulator
import judge

FAKE = """#!/bin/bash
for word; do
	case $word in
	file,id=port,*) port=${word#*path=} ;;
	esac
done
console=console.log
exec 3>"$port"
eval "exec ${port##*/}>&-"
"""
GOOD_LOG = "printf '[ 0.1] mode\\nlab: start a\\nlab: end a\\nlab: power off\\nreboot: Power down\\n' >>$console\n"


class Machine:
    """A machine whose QEMU is a script."""
    name, arch, console, cpus, threads = "fake", "x86_64", "ttyX", 1, "single"
    memory, boot, allows = 64, "", []
    says = data.patterns({"mode": "it did not start"}, "fake")

    def __init__(self, script):
        self.folder = os.environ["TMPDIR"]
        path = os.path.join(self.folder, "qemu")
        with open(path, "w", encoding="utf-8") as file:
            file.write(FAKE + script)
        os.chmod(path, 0o755)
        self.qemu = [path]

    def command(self, _pages):
        """As that of data.Machine."""
        return self.qemu


class Case:
    """What Boot asks of a case."""
    boot, memory, cpus, timeout = "", 0, {}, 1

    def __init__(self, name):
        self.name = name


class Limits(emulator.Limits):
    """Short ones."""
    boot = 2

    def case(self, case):
        return 2


class Options:
    """Those of lab/run that Boot reads."""
    icount = shell = gdb = patient = False
    cpus = None
    limits = Limits("plain", False)

    def __init__(self, seconds=60):
        self.deadline = time.monotonic() + seconds

    @staticmethod
    def output(_name, _line):
        """Nobody reads it here."""


class Kernel:
    """Nothing is loaded."""
    image, pages = "none", None


def boot(script, seconds=60):
    """Run the script as QEMU with the cases a and b; the Boot and the verdicts."""
    machine = Machine(script)
    log = os.path.join(machine.folder, "console.log")
    if os.path.exists(log):
        os.unlink(log)
    made = emulator.Boot(machine, Kernel, machine.folder, Options(seconds), [Case("a"), Case("b")])
    records = made.run("none", lambda _: None)
    return made, {record.name: judge.case_verdict(record) for record in records}


def expect(script, case, part, reason, seconds=60):
    """The verdict of a, and the machine's reasons, contain so much; None: a passes, no reason."""
    begun = time.monotonic()
    made, verdicts = boot(script, seconds)
    tap.true(time.monotonic() - begun < 20, "it ends soon")
    tap.true(made.process.returncode is not None, "the process was waited for")
    tap.equal(verdicts["a"].kind if "a" in verdicts else None, case, f"verdicts {verdicts}")
    if part:
        tap.contains(str(verdicts["a"]), part, "the verdict")
    if reason:
        tap.contains(" | ".join(made.reasons()), reason, "the machine's reasons")
    else:
        tap.equal(made.reasons(), [], "the machine's reasons")


ROWS = {
    "a machine in order": (
        GOOD_LOG + "printf 'start a\\n 1..1\\n ok 1 - x\\nend a exit 0 5 0\\ndone\\n' >&3", "ok", None, None),
    "a machine that says nothing is killed": ("exec sleep 100", None, None, "killed after 2 s without a result"),
    "a machine that says nothing after a start is killed": (
        "echo start a >&3; exec sleep 100", "fail", "killed after 2 s", "did not reach its end"),
    "a machine that talks and never ends is killed": (
        "echo start a >&3; while sleep 0.1; do echo ' more' >&3; done", "fail", "killed after 2 s", "without a result"),
    "a machine over the whole run's time is killed": (
        "echo start a >&3; exec sleep 100", "fail", "whole run", "whole run", 1),
    "a machine that does not power off is killed": (
        GOOD_LOG + "printf 'start a\\nend a exit 0 5 0\\ndone\\n' >&3; exec sleep 100", "ok", None, "killed after 2 s"),
    "a machine that closes the port and stays is killed": (
        GOOD_LOG + "printf 'start a\\nend a exit 0 5 0\\ndone\\n' >&3; exec 3>&-; exec sleep 100", "ok", None,
        "did not end after"),
    "a QEMU that fails has its last words told": (
        "echo no such device >&2; exit 1", None, None, "status 1: no such device"),
    "a machine that ends in a case": ("echo start a >&3", "fail", "the machine ended during it", "its end"),
    "a line cut short is no result": (
        GOOD_LOG + "printf 'start a\\nend a exit 0 5 0' >&3", "fail", "the machine ended", "its end"),
    "a machine without its mode": (
        "printf 'start a\\nend a exit 0 5 0\\ndone\\n' >&3", "ok", None, "did not say `mode`"),
    "a machine that ends with an error": (
        GOOD_LOG + "printf 'start a\\nend a exit 0 5 0\\ndone\\n' >&3; exit 7", "ok", None, "status 7"),
}
for NAME, ROW in ROWS.items():
    tap.add(NAME, expect, *ROW)


@tap.test("a case is judged when the next one begins, with all of its log")
def early():
    made = emulator.Boot(Machine(
        "printf 'lab: start a\\nlab: end a\\nWARNING: late\\n' >>$console\n"
        "printf 'start a\\nend a exit 0 5 0\\n' >&3; sleep 0.7\n"
        "printf 'lab: start b\\n' >>$console; echo start b >&3; exec sleep 100\n"),
        Kernel, os.environ["TMPDIR"], Options(), [Case("a"), Case("b")])
    running = made.run("none", lambda _: None)
    first = next(running)
    tap.equal(first.name, "a", "the first")
    tap.true(made.process.poll() is None, "the machine still runs")
    tap.contains(str(judge.case_verdict(first)), "WARNING: late", "its verdict")
    tap.equal([record.name for record in running], ["b"], "the rest")


@tap.test("what the init cannot have said is an error, not a result")
def nonsense():
    for line in ("hello", "start c", "end c exit 0 1 0"):
        try:
            boot(f"echo '{line}' >&3; exec sleep 100")
        except emulator.Failure as failure:
            tap.contains(str(failure), line, "the error")
        else:
            raise AssertionError(f"{line!r} was accepted")


tap.run()
