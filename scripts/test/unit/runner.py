#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The test runner reports every way in which a test program can go wrong.

Each row of TABLE is a program that the runner is given, and what it must say. Add a row for each
new rule.
"""
import os
import re
import signal
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


def make(directory, path, script):
    """A shell script as a test of a repository."""
    path = os.path.join(directory, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write("#!/bin/bash\n" + script + "\n")
    os.chmod(path, 0o755)


def run(script, directory):
    """Give the runner a repository that holds one test; (status, output)."""
    make(directory, "scripts/test/docs/case.sh", script)
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


def make_fuzz(directory, name, script):
    """The same, as a program that may run beside others."""
    make(directory, f"lib/fuzz/{name}.c", "")
    make(directory, f"build/fuzz/{name}", script)
    make(directory, "scripts/fuzz-one", 'exec "$1"')


def run_two(directory, *groups):
    """Let the runner have two lanes; its output."""
    done = subprocess.run([sys.executable, RUNNER, "--jobs", "2", "--root", directory, *groups], timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    tap.diag(done.stdout)
    return done.stdout


# Both get to their end only if the other one runs meanwhile.
MEET = """
    echo 1..1; touch {mine}
    for i in {{1..100}}; do [ -e {other} ] && break; sleep 0.1; done
    [ -e {other} ] && echo ok 1 || echo not ok 1
    """


@tap.test("a fuzzer runs beside a test that wants the machine for itself")
def side_by_side():
    with tempfile.TemporaryDirectory() as directory:
        make(directory, "scripts/test/docs/a.sh", MEET.format(mine="a", other="b"))
        make_fuzz(directory, "b", MEET.format(mine="b", other="a"))
        output = run_two(directory, "docs", "fuzz")
    tap.equal(output.splitlines()[-1], "2 passed, 0 failed, 0 skipped", "the last line")


@tap.test("two tests that want the machine for themselves never run at once")
def one_by_one():
    script = "echo 1..1; mkdir here && sleep 0.5 && rmdir here && echo ok 1 || echo not ok 1"
    with tempfile.TemporaryDirectory() as directory:
        for name in "abc":
            make(directory, f"scripts/test/docs/{name}.sh", script)
        make_fuzz(directory, "d", "echo 1..1; echo ok 1")
        output = run_two(directory, "docs", "fuzz")
    tap.equal(output.splitlines()[-1], "4 passed, 0 failed, 0 skipped", "the last line")


@tap.test("what one leaves behind is not blamed on the other")
def blamed():
    leave = "sleep 64 >/dev/null 2>&1 &"
    if os.geteuid() == 0:
        leave += '\nmkdir "$TMPDIR/m"; mount -t tmpfs none "$TMPDIR/m"'
    with tempfile.TemporaryDirectory() as directory:
        # b has begun before anything is left behind, and ends after it.
        make(directory, "scripts/test/docs/a.sh", MEET.format(mine="a", other="b") + leave + "\ntouch left")
        make_fuzz(directory, "b", MEET.format(mine="b", other="left"))
        output = run_two(directory, "docs", "fuzz")
    tap.contains(output, "FAIL docs/a", "the output")
    tap.contains(output, "ok   fuzz/b", "the output")
    tap.true(not is_alive(64), "what was left behind was killed")


@tap.test("a lane that is killed is a failure, and so is what it would have run")
def lane_killed():
    with tempfile.TemporaryDirectory() as directory:
        make(directory, "scripts/test/docs/a.sh", "echo 1..1; kill -9 $PPID; echo ok 1")
        make(directory, "scripts/test/docs/b.sh", "echo 1..1; echo ok 1")
        make_fuzz(directory, "c", "echo 1..1; echo ok 1")
        output = run_two(directory, "docs", "fuzz")
    tap.contains(output, "ended: status -9", "the output")
    tap.contains(output, "FAIL docs/b", "the output")
    tap.equal(output.splitlines()[-1], "1 passed, 2 failed, 0 skipped", "the last line")


def interrupted(number, group):
    """A runner that a signal ends leaves nothing running."""
    with tempfile.TemporaryDirectory() as directory:
        script = "echo 1..1\nsleep 63"
        make(directory, "scripts/test/docs/a.sh", script)
        make_fuzz(directory, "b", script)
        # A shell that starts this test in the background has it ignore SIGINT.
        default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        with subprocess.Popen([sys.executable, RUNNER, "--root", directory, group], preexec_fn=default,
                              start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True) as runner:
            wait_for("the program was started", lambda: is_alive(63))
            if number == signal.SIGINT:
                # As Ctrl-C, to its lanes too.
                os.killpg(runner.pid, number)
            else:
                runner.send_signal(number)
            tap.equal(runner.communicate(timeout=20)[1], "", "what it says of that")
        # Of SIGKILL the runner knows nothing: what it had started ends by itself.
        wait_for("the program was killed", lambda: not is_alive(63))


def wait_for(what, condition):
    """Wait until it holds, for some seconds."""
    deadline = time.monotonic() + 20
    while not condition():
        tap.true(time.monotonic() < deadline, what)
        time.sleep(0.05)


for NUMBER in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
    for GROUP in ("docs", "fuzz"):
        tap.add(f"a runner that {NUMBER.name} ends leaves nothing of {GROUP} running", interrupted, NUMBER, GROUP)


for name, row in TABLE.items():
    tap.add(name, check_row, *row)
tap.run()
