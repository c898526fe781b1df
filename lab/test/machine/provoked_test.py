#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""A real machine: what goes wrong in it is noticed, and nothing is left behind.

The self-* cases do what they must not; here is what lab/run has to say about each. To add one
write a case, and a row in VERDICTS. check-timeout: 900
"""
import os
import signal
import subprocess
import sys
import time

import tap

ROOT = os.environ["INFILL_ROOT"]
RUN = os.path.join(ROOT, "lab", "run")
sys.path[:0] = [os.path.join(ROOT, "lab"), os.path.join(ROOT, "guest")]
# pylint: disable=wrong-import-position
import initrd

MACHINE = "x86-npt"
# Not the folder of the machine's other cases, which may run at the same time.
SUFFIX = "provoked"
FOLDER = os.path.join(initrd.OUT, f"{MACHINE}-plain-{SUFFIX}")

# The result of each case: how its line begins, and what it says.
VERDICTS = {
    "self-exit": ("not ok", "exit status 3"),
    "self-flood": ("not ok", "printed too much"),
    "self-hang": ("not ok", "no end after 3 s: killed, its last line: about to hang"),
    "self-ok": ("ok", ""),
    "self-setting": ("ok", ""),
    "self-settings-undone": ("ok", ""),
    "self-short": ("not ok", "1 results, 2 planned"),
    "self-signal": ("not ok", "signal 9"),
    "self-skip": ("ok", "# SKIP provoked"),
    "self-taint": ("not ok", "tainted (512)"),
    "self-tap": ("not ok", "not ok 2 - two"),
    "self-vanish": ("not ok", "the machine ended during it"),
    "self-warn": ("not ok", "WARNING: provoked"),
}


def lab(*arguments):
    """Run lab/run to its end."""
    return subprocess.run([RUN, "--name", SUFFIX, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=600, check=False)


def result_of(done, name):
    """The line of a case's result, from its verdict on."""
    lines = [line for line in done.stdout.splitlines()
             if line.startswith(("ok ", "not ok ")) and line.split(" - ")[1].split(" #")[0] == name]
    tap.equal(len(lines), 1, f"results of {name} in {done.stdout!r}, stderr {done.stderr!r}")
    return lines[0]


class Once:
    """The run of all self cases, made for the first test that asks."""
    done = None

    @classmethod
    def get(cls):
        """The finished run."""
        if cls.done is None:
            cls.done = lab(MACHINE, "self")
        return cls.done


def verdict(name):
    """One row of VERDICTS."""
    begin, part = VERDICTS[name]
    line = result_of(Once.get(), name)
    tap.true(line.startswith(begin + " "), f"{line!r} begins with {begin!r}")
    tap.contains(line, part, "the result")


for NAME in VERDICTS:
    tap.add(f"the verdict of {NAME}", verdict, NAME)


@tap.test("a machine that vanished fails; behind it, and behind a report, the kernel is a fresh one")
def vanished():
    done = Once.get()
    tap.equal(done.returncode, 1, "exit status")
    tap.true(result_of(done, "machine").startswith("not ok "), "the machine's result")
    with open(os.path.join(FOLDER, "console.log"), encoding="utf-8", errors="replace") as file:
        tap.equal(file.read().count("Linux version "), 3, "boots")


@tap.test("of a case that does not end, what each of its threads waits for is told")
def threads():
    Once.get()
    with open(os.path.join(FOLDER, "self-hang.out"), encoding="utf-8") as file:
        lines = [line for line in file.read().splitlines() if line.startswith("# ")]
    # The program and its child, both in pause(), and nothing else that runs in the machine.
    tap.equal(sum(line.startswith("# thread ") for line in lines), 2, f"threads in {lines}")
    tap.equal(sum("# " + "  system call 34 " in line for line in lines), 2, f"system calls in {lines}")
    tap.equal(sum("sys_pause" in line for line in lines), 2, f"places in the kernel in {lines}")


@tap.test("what a case prints is in a file of its name, and with --output in another")
def output():
    target = os.path.join(os.environ["TMPDIR"], "out")
    done = lab("--output", target, MACHINE, "self-ok")
    tap.equal(done.returncode, 0, f"exit status of {done.stdout!r} {done.stderr!r}")
    for path in (target, os.path.join(FOLDER, "self-ok.out")):
        with open(path, encoding="utf-8") as file:
            tap.equal(file.read(), "fine\n", path)


@tap.test("arguments behind -- replace the case's own")
def arguments():
    done = lab(MACHINE, "self-ok", "--", "exit")
    tap.contains(result_of(done, "self-ok"), "exit status 3", "the result")


@tap.test("a run that is over its time is a failure")
def over_time():
    # The case has 3 s of its own, after the boot.
    done = lab("--timeout", "2", MACHINE, "self-hang")
    tap.equal(done.returncode, 1, "exit status")
    tap.contains(result_of(done, "self-hang"), "time for the whole run was up", "its result")


def qemus():
    """The QEMU processes that run in FOLDER."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd") == FOLDER:
                found.append(int(pid))
        except OSError:
            pass
    return found


def wait_for(what, condition):
    """Wait until it holds, for half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        tap.true(time.monotonic() < deadline, what)
        time.sleep(0.05)


def killed(number):
    """Kill lab/run in the middle of a case."""
    # A shell that starts this test in the background has it ignore SIGINT.
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([RUN, "--name", SUFFIX, MACHINE, "self-hang"], stdin=subprocess.DEVNULL, preexec_fn=default,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        wait_for("QEMU runs", qemus)
        # A second run must not disturb the first.
        done = lab(MACHINE, "self-ok")
        tap.equal(done.returncode, 1, "exit status of a second run")
        tap.contains(done.stderr, "running with this kernel already", "its error")
        child.send_signal(number)
        child.wait()
        wait_for("no QEMU is left", lambda: not qemus())


for NUMBER in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
    tap.add(f"no QEMU is left after {NUMBER.name}", killed, NUMBER)


@tap.test("a person gets a shell, and the programs of the cases")
def shell():
    said = ""
    with subprocess.Popen([RUN, "--name", SUFFIX, "--shell", MACHINE], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        for line in child.stdout:
            said += line
            if line.startswith("Enter 'help'"):
                child.stdin.write("echo answer $((6 * 7)); ls /selftests /programs; poweroff -f\n")
                child.stdin.flush()
    tap.contains(said, "answer 42", "what the shell says")
    tap.contains(said, "userfault_test", "the programs")
    tap.equal(child.returncode, 0, "exit status")


@tap.test("wrong usage is refused with the names that are known")
def usage():
    for words, part in ((["nowhere"], "known are arm64-nested"), ([MACHINE, "nothing"], "self-ok"),
                        ([], "known are arm64-nested"), (["--pages", "16k", MACHINE], "no arm64 machine"),
                        (["--output", "x", MACHINE, "self"], "name one case"),
                        (["--timeout", "0", MACHINE], "not a time"),
                        (["--name", "../x", MACHINE], "small letters and digits")):
        done = lab(*words)
        tap.equal(done.returncode, 2, f"exit status of {words}")
        tap.contains(done.stderr, part, f"what {words} is told")


tap.run()
