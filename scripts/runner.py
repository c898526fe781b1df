#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Runs test programs one after the other and counts what their TAP says.

    scripts/runner.py [--list] [--build DIR] [--root DIR] GROUP[/NAME]...

A program fails for a `not ok`, and also for a missing plan, fewer or more results than planned, a
result out of order, a skip without a reason, a non-zero exit, a signal, a time-out, a process or a
mount that it leaves behind. check calls this; to add a group add a line to GROUPS.
"""
import argparse
import ctypes
import glob
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid

TIMEOUT = 300
# How long a process may take to vanish after its program ended; QEMU under load takes a while.
GRACE = 5.0
# A Unix socket's path has 108 bytes; leave half of them to the test.
TMPDIR_MAX = 54
PR_SET_CHILD_SUBREAPER = 36

# Where each group's programs come from. A .c file becomes DIR/test/GROUP/NAME of the build;
# anything else is run as it is when it is executable.
GROUPS = {
    "unit": ["lib/test/unit/*.c", "vmm/test/unit/*.c", "lib/test/unit/*", "scripts/test/unit/*", "lab/test/unit/*"],
    "pager": ["lib/test/pager/*.c", "lib/test/pager/*"],
    "guest": ["guest/test/*"],
    "crash": ["lib/test/crash/*.c", "lib/test/crash/*"],
    "bad-input": ["lib/test/bad-input/*.c", "lib/test/bad-input/*"],
    "cli": ["cli/test/*.c", "cli/test/*"],
    "san": [],
    "fuzz": [],
    "abi": ["scripts/test/abi/*"],
    "docs": ["scripts/test/docs/*"],
    "series": ["kernel/test/series/*"],
    "series-steps": ["kernel/test/steps/*"],
    "lab": ["kernel/test/built/*", "lab/test/machine/*"],
    "lab-machines": [],
    "lab-debug": [],
    "lab-pages": [],
    "lab-upstream": [],
}
# The name and the words of each call of lab/run in a group. It limits its time by itself.
LAB_FIRST = ["arm64-nested", "arm64-pkvm", "x86-npt"]
LAB_OTHERS = ["arm64-vhe", "arm64-nvhe", "x86-shadow"]
LAB_RUNS = {
    "lab": {machine: [machine] for machine in LAB_FIRST},
    "lab-machines": {machine: [machine] for machine in LAB_OTHERS},
    "lab-debug": {machine: ["--kernel", "debug", machine] for machine in LAB_FIRST + LAB_OTHERS},
    "lab-pages": {pages: ["--pages", pages, "arm64-vhe"] for pages in ("16k", "64k")},
    "lab-upstream": {machine: ["--compare", machine, "upstream"] for machine in LAB_FIRST + LAB_OTHERS},
}
LAB_TIMEOUT = 6 * 3600
# The C programs of these groups run again under each sanitizer.
SAN_GROUPS = ["unit", "pager", "crash"]
SAN_BUILDS = ["asan", "tsan"]
SAN_ENV = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    # A process that forks while it has threads goes on in the child.
    "TSAN_OPTIONS": "die_after_fork=0:second_deadlock_stack=1",
    "INFILL_CRASH_KILLS": "20",
}


class Program:
    """One test program: what to run, how long, and with what added to the environment."""

    def __init__(self, group, name, command, source, env=None):
        self.group, self.name = group, name
        self.command, self.env = command, env or {}
        self.timeout = read_timeout(source)

    def __str__(self):
        return f"{self.group}/{self.name}"


class Result:
    """What one program said: counts, and the reasons of what failed and what was skipped."""

    def __init__(self):
        self.passed = 0
        self.failures = []
        self.skips = []


# ---- which programs there are -----------------------------------------------


def read_timeout(source):
    """A `check-timeout: SECONDS` line in the source raises the limit."""
    try:
        with open(source, encoding="utf-8", errors="replace") as file:
            found = re.search(r"^[\s/*#]*check-timeout: *(\d+)", file.read(), re.MULTILINE)
    except OSError:
        found = None
    return int(found.group(1)) if found else TIMEOUT


def find_programs(root, build, group):
    """The programs of a plain group, C first, each folder sorted by name."""
    programs = []
    for pattern in GROUPS[group]:
        for source in sorted(glob.glob(os.path.join(root, pattern))):
            name, kind = os.path.splitext(os.path.basename(source))
            if pattern.endswith(".c"):
                command = [os.path.join(build, "test", group, name)]
            elif kind != ".c" and os.path.isfile(source) and os.access(source, os.X_OK):
                command = [source]
            else:
                continue
            programs.append(Program(group, name, command, source))
    return programs


def find_san(root, build):
    """The C programs of SAN_GROUPS in each sanitizer's build."""
    programs = []
    for kind in SAN_BUILDS:
        for group in SAN_GROUPS:
            patterns = [pattern for pattern in GROUPS[group] if pattern.endswith(".c")]
            for source in sorted(path for pattern in patterns for path in glob.glob(os.path.join(root, pattern))):
                name = os.path.splitext(os.path.basename(source))[0]
                command = [os.path.join(build, kind, "test", group, name)]
                if kind == "tsan":
                    # Its fixed address map does not fit a kernel that randomizes more bits.
                    command = ["setarch", "-R"] + command
                env = dict(SAN_ENV, INFILL_BUILD=os.path.join(build, kind))
                program = Program("san", f"{kind}-{group}-{name}", command, source, env)
                program.timeout *= 3
                programs.append(program)
    return programs


def find_fuzz(root, build):
    """One libFuzzer run for each target."""
    programs = []
    script = os.path.join(root, "scripts", "fuzz-one")
    for source in sorted(glob.glob(os.path.join(root, "*/fuzz/*.c"))):
        name = os.path.splitext(os.path.basename(source))[0]
        # trace_fuzz.c keeps its corpus in corpus/trace.
        corpus = os.path.join(os.path.dirname(source), "corpus", name.removesuffix("_fuzz"))
        command = [script, os.path.join(build, "fuzz", name), corpus]
        programs.append(Program("fuzz", name, command, source))
    return programs


def find_lab(root, group):
    """The machines of a group, with all cases that apply to them."""
    programs = []
    script = os.path.join(root, "lab", "run")
    for name, words in LAB_RUNS[group].items():
        program = Program(group, name, [script, *words], script)
        program.timeout = LAB_TIMEOUT
        programs.append(program)
    return programs


def find(root, build, wanted):
    """The programs that `GROUP` or `GROUP/NAME` stands for; SystemExit when there are none."""
    group, _, name = wanted.partition("/")
    if group not in GROUPS:
        sys.exit(f"check: {group}: unknown group: known are {' '.join(GROUPS)}")
    if group == "san":
        programs = find_san(root, build)
    elif group == "fuzz":
        programs = find_fuzz(root, build)
    else:
        programs = find_programs(root, build, group)
        programs += find_lab(root, group) if group in LAB_RUNS else []
    if name:
        programs = [program for program in programs if program.name == name]
        if not programs:
            sys.exit(f"check: {wanted}: no such test: ./check --list shows them")
    return programs


# ---- TAP --------------------------------------------------------------------

RESULT = re.compile(r"(not )?ok\b *(\d+)? *(?:- *)?(.*)$")
SKIP = re.compile(r"(.*?)(?<!\\)# *skip\b:? *(.*)$", re.IGNORECASE)
PLAN = re.compile(r"1\.\.(\d+) *(?:# *skip\b:? *(.*))?$", re.IGNORECASE)


class Tap:
    """Reads TAP line by line; finish() says what was wrong with the whole."""

    def __init__(self):
        self.result = Result()
        self.plan = None
        self.seen = 0
        self.errors = []
        self.note = ""

    def line(self, text):
        """Take one line of stdout; what is no TAP is for the log only."""
        if match := PLAN.match(text):
            self.take_plan(int(match.group(1)), match.group(2))
        elif match := RESULT.match(text):
            self.take_result(not match.group(1), match.group(2), match.group(3))
        elif text.startswith("Bail out!"):
            self.errors.append(text)
        elif text.strip():
            # cmocka's skip() takes no reason: the test prints it just before.
            self.note = re.sub(r"^[#\s]*(skip(ped)?:\s*)?", "", text, flags=re.IGNORECASE)

    def take_plan(self, count, reason):
        if self.plan is not None:
            self.errors.append("a second plan")
        self.plan = count
        if count == 0:
            if reason:
                self.result.skips.append(("", reason))
            else:
                self.errors.append("a plan of no tests without a reason")

    def take_result(self, good, number, text):
        self.seen += 1
        if number is not None and int(number) != self.seen:
            self.errors.append(f"result {number} where {self.seen} was due")
        skip = SKIP.match(text)
        # A skip of cmocka 1.1.5 is `not ok 1 - # SKIP name`: no name before the mark.
        if not good and not (skip and not skip.group(1)):
            self.result.failures.append(f"not ok {self.seen} - {text}")
        elif skip:
            self.take_skip(skip.group(1).strip(), skip.group(2).strip())
        else:
            self.result.passed += 1
        self.note = ""

    def take_skip(self, name, reason):
        if not name:
            # cmocka prints the test's name where the reason belongs.
            name, reason = reason, self.note
        if reason:
            self.result.skips.append((name, reason))
        else:
            self.result.failures.append(f"skip {self.seen} - {name}: no reason given")

    def finish(self):
        """The result; every error in the whole is one more failure."""
        if self.plan is None:
            self.errors.append("no plan")
        elif self.seen != self.plan:
            self.errors.append(f"{self.seen} results, {self.plan} planned")
        self.result.failures += self.errors
        return self.result


# ---- processes and mounts ---------------------------------------------------


def read_proc(pid, name):
    """A file of /proc/PID, empty when the process is gone."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def survivors(marker):
    """The living processes that have the marker in their environment, or were left to this one."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        stat = read_proc(pid, "stat").rpartition(b")")[2].split()
        if not stat or stat[0] in (b"Z", b"X"):
            continue
        if int(stat[1]) == os.getpid() or marker in read_proc(pid, "environ").split(b"\0"):
            found.append(int(pid))
    return found


def reap():
    """Collect the orphans that ended, which came to this process as the subreaper.

    Not while a program runs whose status is wanted: only before its start and after its end, and
    in kill_all(), after which subprocess reports a plain 0 for it.
    """
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def describe(pid):
    """What the process is and where it waits, for the log."""
    command = read_proc(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    lines = [f"# process {pid}: {command or read_proc(pid, 'comm').decode(errors='replace')}"]
    for task in sorted(glob.glob(f"/proc/{pid}/task/*")):
        thread = task[len("/proc/"):]
        state = read_proc(thread, "stat").rpartition(b")")[2].split()[:1]
        name = read_proc(thread, "comm").decode(errors="replace").strip()
        where = read_proc(thread, "wchan").decode(errors="replace")
        lines.append(f"#   thread {name}: {b''.join(state).decode()} {where}")
    return "\n".join(lines)


def kill_all(marker):
    """Kill the survivors until there are none; a fork can outrun one pass."""
    deadline = time.monotonic() + 10
    while (left := survivors(marker)) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)
        reap()
    return left


def mounts():
    """The mount points of this namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return {line.split()[4].encode().decode("unicode_escape") for line in file}


# ---- huge pages --------------------------------------------------------------


def give_back_huge_pages(tmpdir):
    """Take out of the pool what a program that died had added and noted in its TMPDIR; a line for the log."""
    pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    try:
        with open(os.path.join(tmpdir, "hugepages-added"), encoding="utf-8") as file:
            added = int(file.read())
        with open(pool, encoding="utf-8") as file:
            left = max(0, int(file.read()) - added)
        with open(pool, "w", encoding="utf-8") as file:
            file.write(str(left))
    except (OSError, ValueError):
        return ""
    return f"{added} huge pages were left in the pool: given back"


# ---- running one program ----------------------------------------------------


class Run:
    """One run of one program, its log, its TMPDIR and what it leaves behind."""

    def __init__(self, program, root, build):
        self.program, self.root, self.build = program, root, build
        self.marker = f"INFILL_CHECK_ID={uuid.uuid4().hex}"
        self.tap = Tap()
        log = os.path.join(build, "log", "check", program.group, program.name + ".log")
        os.makedirs(os.path.dirname(log), exist_ok=True)
        self.log_path = log
        self.log = open(log, "wb", buffering=0)

    def make_tmpdir(self):
        """A folder below build/tmp, or below /tmp where that path is too long for a socket."""
        base = os.path.join(self.build, "tmp")
        os.makedirs(base, exist_ok=True)
        if len(base) > TMPDIR_MAX:
            base = None
        path = tempfile.mkdtemp(prefix="t", dir=base)
        os.chmod(path, 0o755)
        return path

    def environment(self, tmpdir):
        name, _, value = self.marker.partition("=")
        env = {key: text for key, text in os.environ.items() if not key.startswith(("MAKE", "INFILL_CHECK_ID"))}
        env.update({
            name: value, "TMPDIR": tmpdir, "LC_ALL": "C", "CMOCKA_MESSAGE_OUTPUT": "TAP",
            "INFILL_ROOT": self.root, "INFILL_BUILD": self.build,
            "PYTHONPATH": os.path.join(self.root, "scripts"), "PYTHONDONTWRITEBYTECODE": "1",
        })
        env.update(self.program.env)
        return env

    def go(self, tick):
        """Run it, call TICK about once a second, and return the Result."""
        tmpdir = self.make_tmpdir()
        before = mounts()
        try:
            status = self.execute(tmpdir, tick)
        except BaseException:
            # Interrupted: do not wait for what would have ended by itself.
            kill_all(self.marker.encode())
            raise
        finally:
            left = self.clean_processes()
            stuck = self.clean_mounts(before, tmpdir)
            if text := give_back_huge_pages(tmpdir):
                self.log.write(f"# check: {text}\n".encode())
            if not stuck:
                shutil.rmtree(tmpdir, ignore_errors=True)
        # A program that said `not ok` is expected to exit non-zero.
        if status and not (status.startswith("exit status") and self.tap.result.failures):
            self.error(status)
        for text in left + stuck:
            self.error(text)
        self.log.close()
        return self.tap.finish()

    def error(self, text):
        self.tap.errors.append(text)
        self.log.write(f"# check: {text}\n".encode())

    def execute(self, tmpdir, tick):
        """Run the program to its end; the reason when that was not a plain exit 0."""
        try:
            child = subprocess.Popen(
                self.program.command, cwd=self.root, env=self.environment(tmpdir),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log,
                start_new_session=True)
        except OSError as error:
            return f"cannot be started: {error.strerror}"
        ended = self.follow(child, time.monotonic() + self.program.timeout, tick)
        child.stdout.close()
        if not ended:
            for pid in survivors(self.marker.encode()):
                self.log.write((describe(pid) + "\n").encode())
            kill_all(self.marker.encode())
        status = child.wait()
        if not ended:
            return f"no end after {self.program.timeout} s"
        if status < 0:
            return f"ended by signal {signal.Signals(-status).name}"
        return f"exit status {status}" if status else None

    def follow(self, child, deadline, tick):
        """Read stdout until the child ends, however long its own children keep the pipe open."""
        pipe, pending = child.stdout.fileno(), b""
        os.set_blocking(pipe, False)
        end = os.pidfd_open(child.pid)
        ended = False
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            selector.register(end, selectors.EVENT_READ)
            while not ended and time.monotonic() < deadline:
                ready = [key.fd for key, _ in selector.select(min(1.0, max(0.0, deadline - time.monotonic())))]
                ended = end in ready
                pending, closed = self.drain(pipe, pending)
                if closed and pipe in selector.get_map():
                    selector.unregister(pipe)
                tick()
        os.close(end)
        if pending:
            self.tap.line(pending.decode(errors="replace"))
        return ended

    def drain(self, pipe, pending):
        """Read what is there; the unfinished line, and whether the pipe was closed."""
        while True:
            try:
                data = os.read(pipe, 65536)
            except BlockingIOError:
                return pending, False
            if not data:
                return pending, True
            self.log.write(data)
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self.tap.line(line.decode(errors="replace").rstrip("\r"))

    def clean_processes(self):
        """Wait a moment for what is ending by itself, then kill the rest and say what it was."""
        marker, deadline = self.marker.encode(), time.monotonic() + GRACE
        reap()
        while (left := survivors(marker)) and time.monotonic() < deadline:
            time.sleep(0.05)
            reap()
        reasons = []
        for pid in left:
            text = describe(pid)
            self.log.write((text + "\n").encode())
            reasons.append("left behind: " + text.splitlines()[0][2:])
        if kill_all(marker):
            reasons.append("left behind: processes that cannot be killed")
        return reasons

    def clean_mounts(self, before, tmpdir):
        """Unmount what was mounted in the program's own folder; report every new mount."""
        new = sorted(mounts() - before, key=len, reverse=True)
        for path in new:
            if path.startswith(tmpdir + "/") or path == tmpdir:
                subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL, check=False)
        return [f"left behind: mount {path}" for path in new]


# ---- showing it -------------------------------------------------------------


class Screen:
    """A progress line on a terminal; one line a program elsewhere."""

    def __init__(self, total):
        self.total, self.done = total, 0
        self.terminal = sys.stdout.isatty()
        self.start, self.shown = 0.0, 0.0

    def begin(self, program):
        self.start, self.shown = time.monotonic(), 0.0
        self.program = program
        self.tick()

    def tick(self):
        now = time.monotonic()
        if self.terminal and now - self.shown >= 1:
            self.shown = now
            width = shutil.get_terminal_size().columns
            filled = 20 * self.done // max(1, self.total)
            text = f"[{'#' * filled}{'.' * (20 - filled)}] {self.done}/{self.total} {self.program} {now - self.start:.0f} s"
            print("\r\033[K" + text[:width - 1], end="", flush=True)

    def end(self, result, log_path):
        self.done += 1
        if self.terminal:
            print("\r\033[K", end="")
        seconds = time.monotonic() - self.start
        counts = [f"{result.passed} passed"]
        if result.failures:
            counts.append(f"{len(result.failures)} failed")
        if result.skips:
            counts.append(f"{len(result.skips)} skipped")
        if result.failures or not self.terminal:
            word = "FAIL" if result.failures else "ok"
            print(f"{word:4} {self.program} ({', '.join(counts)}, {seconds:.1f} s)")
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


def run_all(programs, root, build):
    """Run them all and print the closing lines; the exit status."""
    # Orphans of a test come to this process, so that they are found and reaped.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    screen = Screen(len(programs))
    passed, failed, skips = 0, 0, []
    for program in programs:
        screen.begin(program)
        run = Run(program, root, build)
        result = run.go(screen.tick)
        screen.end(result, shorten(run.log_path, root))
        passed += result.passed
        failed += len(result.failures)
        skips += [(str(program), name, reason) for name, reason in result.skips]
    print_skips(skips)
    print(f"{passed} passed, {failed} failed, {len(skips)} skipped", flush=True)
    return 1 if failed or passed + len(skips) == 0 else 0


def main():
    parser = argparse.ArgumentParser(
        prog="runner.py", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the programs, run none")
    parser.add_argument("--root", default=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser.add_argument("--build", help="where things were built (ROOT/build)")
    parser.add_argument("wanted", nargs="*", metavar="GROUP[/NAME]")
    args = parser.parse_args()
    root = os.path.abspath(args.root)
    build = os.path.abspath(args.build or os.path.join(root, "build"))
    programs = [program for wanted in args.wanted or GROUPS for program in find(root, build, wanted)]
    if args.list:
        for program in programs:
            print(program)
        return 0
    return run_all(programs, root, build)


def stop(number, _frame):
    """Leave through the clean-ups, which kill the running program."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
