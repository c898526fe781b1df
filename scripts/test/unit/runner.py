#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The test runner reports every way in which a test program can go wrong.

Each row of TABLE is a program that the runner is given, and what it must say. Add a row for each
new rule.
"""
import os
import re
import subprocess
import sys
import tempfile
import time

import tap

ROOT = os.environ["INFILL_ROOT"]
RUNNER = os.path.join(ROOT, "scripts", "runner.py")

# name: (script, closing line, what the output must contain)
TABLE = {
    "a good program passes": (
        "echo 1..2; echo ok 1 - a; echo ok 2 - b", "2 passed, 0 failed, 0 skipped", ""),
    "a plan at the end is good": (
        "echo ok 1 - a; echo 1..1", "1 passed, 0 failed, 0 skipped", ""),
    "a last line without a newline counts": (
        "echo 1..1; printf 'ok 1 - a'", "1 passed, 0 failed, 0 skipped", ""),
    "not ok fails even with exit status 0": (
        "echo 1..2; echo ok 1 - a; echo not ok 2 - b", "1 passed, 1 failed, 0 skipped", "not ok 2 - b"),
    "fewer results than planned": (
        "echo 1..3; echo ok 1; echo ok 2", "2 passed, 1 failed, 0 skipped", "2 results, 3 planned"),
    "more results than planned": (
        "echo 1..1; echo ok 1; echo ok 2", "2 passed, 1 failed, 0 skipped", "2 results, 1 planned"),
    "no plan": ("echo ok 1 - a", "1 passed, 1 failed, 0 skipped", "no plan"),
    "two plans": ("echo 1..1; echo ok 1; echo 1..1", "1 passed, 1 failed, 0 skipped", "a second plan"),
    "no output": ("exit 0", "0 passed, 1 failed, 0 skipped", "no plan"),
    "results out of order": (
        "echo 1..2; echo ok 2; echo ok 1", "2 passed, 2 failed, 0 skipped", "result 2 where 1 was due"),
    "bail out": ("echo 1..1; echo ok 1; echo 'Bail out! no'", "1 passed, 1 failed, 0 skipped", "Bail out! no"),
    "exit status": ("echo 1..1; echo ok 1; exit 3", "1 passed, 1 failed, 0 skipped", "exit status 3"),
    "a signal": ("echo 1..1; echo ok 1; kill -SEGV $$", "1 passed, 1 failed, 0 skipped", "SIGSEGV"),
    "a hang": (
        "# check-timeout: 1\necho 1..1; echo ok 1; sleep 60", "1 passed, 1 failed, 0 skipped",
        "no end after 1 s"),
    "a child left behind": (
        "echo 1..1; echo ok 1; sleep 61 >/dev/null 2>&1 &", "1 passed, 1 failed, 0 skipped",
        "left behind: process"),
    "a daemon that keeps stdout and cleans its environment": (
        "echo 1..1; echo ok 1; env -i setsid sleep 62 &", "1 passed, 1 failed, 0 skipped",
        "left behind: process"),
    "a skip has its reason shown": (
        "echo 1..1; echo 'ok 1 - huge # SKIP no huge pages'", "0 passed, 0 failed, 1 skipped",
        "huge: no huge pages"),
    "a skip in cmocka's way has its reason shown": (
        "echo 1..1; echo 'no huge pages'; echo 'ok 1 # SKIP huge'",
        "0 passed, 0 failed, 1 skipped", "huge: no huge pages"),
    "a skip in cmocka's way without a reason fails": (
        "echo 1..2; echo because; echo ok 1 - a; echo 'ok 2 # SKIP huge'", "1 passed, 1 failed, 0 skipped",
        "no reason given"),
    "a skip of cmocka 1.1.5 is no failure": (
        "echo 1..1; echo '# skip: no huge pages'; echo 'not ok 1 - # SKIP huge'",
        "0 passed, 0 failed, 1 skipped", "huge: no huge pages"),
    "a named failure with a skip mark is a failure": (
        "echo 1..1; echo 'not ok 1 - huge # SKIP no huge pages'", "0 passed, 1 failed, 0 skipped",
        "not ok 1 - huge"),
    "a failure and its exit status are one": (
        "echo 1..1; echo not ok 1 - a; exit 1", "0 passed, 1 failed, 0 skipped", "not ok 1 - a"),
    "a skip without a reason fails": (
        "echo 1..1; echo 'ok 1 - huge # SKIP'", "0 passed, 1 failed, 0 skipped", "no reason given"),
    "a whole program skipped": (
        "echo '1..0 # SKIP no qemu'", "0 passed, 0 failed, 1 skipped", "no qemu"),
    "a whole program skipped without a reason fails": (
        "echo 1..0", "0 passed, 1 failed, 0 skipped", "without a reason"),
    "TMPDIR is private and removed": (
        'echo 1..1; touch "$TMPDIR/a"; echo "ok 1"; echo "$TMPDIR" >"$INFILL_BUILD/where"',
        "1 passed, 0 failed, 0 skipped", ""),
}


def run(script, directory):
    """Give the runner a repository that holds one test; (status, output)."""
    tests = os.path.join(directory, "scripts", "test", "docs")
    os.makedirs(tests)
    path = os.path.join(tests, "case.sh")
    with open(path, "w", encoding="utf-8") as file:
        file.write("#!/bin/bash\n" + script + "\n")
    os.chmod(path, 0o755)
    done = subprocess.run([sys.executable, RUNNER, "--root", directory, "docs"], timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


def is_alive(seconds):
    """Whether a `sleep SECONDS` of these tests is still there."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read() == f"sleep\0{seconds}\0".encode():
                    return True
        except OSError:
            pass
    return False


def check_row(script, closing, part):
    with tempfile.TemporaryDirectory() as directory:
        status, output = run(script, directory)
        tap.diag(output)
        tap.equal(output.splitlines()[-1], closing, "the last line")
        tap.contains(output, part, "the output")
        tap.equal(status, 0 if " 0 failed" in closing else 1, "the exit status")
        for seconds in re.findall(r"sleep (\d+)", script):
            tap.true(not is_alive(seconds), f"sleep {seconds} was killed")
        where = os.path.join(directory, "build", "where")
        if os.path.exists(where):
            with open(where, encoding="utf-8") as file:
                path = file.read().strip()
            tap.true(not os.path.exists(path), f"{path} was removed")


@tap.test("a test that was not built fails")
def not_built():
    with tempfile.TemporaryDirectory() as directory:
        folder = os.path.join(directory, "lib", "test", "unit")
        os.makedirs(folder)
        with open(os.path.join(folder, "a.c"), "w", encoding="utf-8") as file:
            file.write("int main(void) { return 0; }\n")
        done = subprocess.run([sys.executable, RUNNER, "--root", directory, "unit"],
                              capture_output=True, text=True, check=False)
        tap.contains(done.stdout, "cannot be started", "the output")
        tap.equal(done.stdout.splitlines()[-1], "0 passed, 2 failed, 0 skipped", "the last line")
        tap.equal(done.returncode, 1, "the exit status")


@tap.test("no test at all fails")
def no_test():
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run([sys.executable, RUNNER, "--root", directory, "docs"],
                              capture_output=True, text=True, check=False)
        tap.equal(done.returncode, 1, "the exit status")


@tap.test("a mount left behind fails and is unmounted")
def mount_left():
    if os.geteuid() != 0:
        tap.skip("mounting needs root")
    with tempfile.TemporaryDirectory() as directory:
        probe = os.path.join(directory, "probe")
        os.mkdir(probe)
        if subprocess.run(["mount", "-t", "tmpfs", "none", probe], check=False).returncode:
            tap.skip("mounting is not permitted here")
        subprocess.run(["umount", probe], check=True)
        script = 'echo 1..1; echo ok 1; mkdir "$TMPDIR/m"; mount -t tmpfs none "$TMPDIR/m"'
        status, output = run(script, directory)
        tap.contains(output, "left behind: mount", "the output")
        tap.equal(status, 1, "the exit status")
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            tap.true(directory not in file.read(), "it was unmounted")


@tap.test("huge pages that a killed program had added are given back")
def huge_pages_left():
    pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    if not os.access(pool, os.W_OK):
        tap.skip("the pool of huge pages cannot be changed here")

    def pages():
        with open(pool, encoding="utf-8") as file:
            return int(file.read())

    before = pages()
    script = f"""
        echo {before + 2} >{pool}; cat {pool} >pool; echo $(($(cat pool) - {before})) >"$TMPDIR/hugepages-added"
        kill -9 $$"""
    with tempfile.TemporaryDirectory() as directory:
        status, output = run(script, directory)
        with open(os.path.join(directory, "pool"), encoding="utf-8") as file:
            grown = int(file.read())
    tap.equal(status, 1, "the exit status")
    tap.contains(output, "SIGKILL", "the output")
    if grown == before:
        tap.skip("the kernel has no huge page to give")
    tap.equal(pages(), before, "pages in the pool")


@tap.test("an interrupted runner leaves nothing running")
def interrupted():
    with tempfile.TemporaryDirectory() as directory:
        tests = os.path.join(directory, "scripts", "test", "docs")
        os.makedirs(tests)
        path = os.path.join(tests, "case.sh")
        with open(path, "w", encoding="utf-8") as file:
            file.write("#!/bin/bash\necho 1..1\nsleep 63\n")
        os.chmod(path, 0o755)
        with subprocess.Popen([sys.executable, RUNNER, "--root", directory, "docs"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as runner:
            deadline = time.monotonic() + 20
            while not is_alive(63) and time.monotonic() < deadline:
                time.sleep(0.05)
            tap.true(is_alive(63), "the program was started")
            runner.terminate()
            runner.wait(timeout=20)
        tap.true(not is_alive(63), "the program was killed")


for name, row in TABLE.items():
    tap.add(name, check_row, *row)
tap.run()
