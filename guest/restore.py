#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""One restore of the saved guest, measured, in a fresh QEMU.

To add a way of restoring write a class beside these and name it in WAYS: it says how QEMU is
started and what it can tell afterwards. All times are milliseconds since the spawn of the command.
"""
import json
import os
import select
import signal
import subprocess
import time

import snapshot as snapshots
import vm

INFILL = os.path.join(vm.ROOT, "build", "infill")
SHIM = os.path.join(vm.ROOT, "build", "libinfill-attach.so")
NAIVE = os.path.join(vm.OUT, "naive")


def need(*paths):
    """Raise when something that make builds is not there."""
    for path in paths:
        if not os.path.exists(path):
            raise vm.Failure(f"{os.path.relpath(path, vm.ROOT)}: not found: run make")


def attach(memory, *options, bound=True):
    """What is put before QEMU's command line.

    A VM outlives an `infill attach` that is killed with -9; bound: here it goes too, so that a
    driver that is killed leaves nothing behind.
    """
    bind = ["setpriv", "--pdeathsig", "KILL"] if bound else []
    return [INFILL, "attach", "--image", memory, *options,
            "--timeline", "timeline", "--socket", "control", "--", *bind]


def process_faults(pid):
    """Minor and major faults of a process so far."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[7]), int(fields[9])


class Mapped:
    """(a) QEMU's own: the file is mapped. A copy of it, as the guest writes to it."""

    title = "(a) QEMU's mapped file"
    needs = ()

    def __init__(self, snapshot, work, trace):
        del trace
        self.work = work
        self.memory = work.file("memory")
        snapshots.copy(snapshot.memory, self.memory)

    def options(self):
        """How to start QEMU."""
        return {}

    def first_work(self, run):
        """Called when the first answer has come: counters, quickly."""

    def settle(self, run):
        """Called then: wait for what must have happened before all data are checked."""

    def finish(self, guest, run):
        """Called after the last answer; QEMU still runs."""

    def collect(self, guest, run):
        """Called when QEMU has ended."""

    def end(self):
        """End what this started, after success and failure."""


class Naive(Mapped):
    """(b) One page per fault, in order of arrival, by naive.c through infill's shim."""

    title = "(b) one page per fault"
    needs = (SHIM, NAIVE)

    def __init__(self, snapshot, work, trace):  # pylint: disable=super-init-not-called
        del trace
        self.work = work
        self.memory = snapshot.memory
        self.process = None

    def options(self):
        with open(self.work.file("naive.stderr"), "wb") as errors:
            self.process = subprocess.Popen(
                [NAIVE, "naive", self.memory], cwd=self.work.path, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, text=True, preexec_fn=vm.die_with_parent,
                process_group=0)
        self.report("its socket")
        with open(self.work.file("report"), "w", encoding="utf-8"):
            pass
        return {"env": {"LD_PRELOAD": SHIM, "INFILL_ATTACH_IMAGE": self.memory,
                        "INFILL_ATTACH_SOCKET": "naive", "INFILL_ATTACH_REPORT": "report"}}

    def report(self, what):
        """A line from naive; it answers at once or has ended."""
        pipe = self.process.stdout
        if not select.select([pipe], [], [], 10)[0]:
            raise vm.Failure(f"naive: {what}: nothing after 10 s")
        line = pipe.readline()
        if not line:
            with open(self.work.file("naive.stderr"), encoding="utf-8") as errors:
                raise vm.Failure(errors.read().strip() or f"naive: ended before {what}")
        return line

    def ask(self, sig):
        """Its counters."""
        self.process.send_signal(sig)
        return json.loads(self.report("its report"))

    def first_work(self, run):
        with open(self.work.file("report"), encoding="utf-8") as file:
            said = file.read()
        if not said.startswith("mapped "):
            raise vm.Failure(f"shim: {said.strip() or 'did not see the image mapped'}")
        counters = self.ask(signal.SIGUSR1)
        run["faults"] = counters["faults"]
        run["stall_ms"] = counters["stall_ns"] / 1e6

    def finish(self, guest, run):
        run["faults_total"] = self.ask(signal.SIGUSR1)["faults"]

    def end(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


class Untraced(Mapped):
    """(c) infill, which records which pages were wanted first."""

    title = "(c) infill, no trace"
    needs = (INFILL, SHIM)

    def __init__(self, snapshot, work, trace):  # pylint: disable=super-init-not-called
        self.work = work
        self.memory = snapshot.memory
        self.trace = trace
        self.stat = None

    def trace_options(self):
        """Record."""
        return ["--record", self.trace]

    def options(self):
        return {"prefix": attach(self.memory, *self.trace_options())}

    def start_stat(self):
        """Run `infill stat`; its answer is taken later, so that the guest is not kept waiting."""
        self.stat = subprocess.Popen(
            [INFILL, "stat", "--json", "control"], cwd=self.work.path, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=vm.die_with_parent)

    def take_stat(self):
        """The counters of the one VM."""
        try:
            out, errors = self.stat.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            raise vm.Failure("infill stat: no answer after 10 s") from None
        if self.stat.returncode:
            raise vm.Failure(f"infill stat: exit {self.stat.returncode}: {errors.strip()}")
        counters = json.loads(out)["vms"]
        if len(counters) != 1:
            raise vm.Failure(f"infill stat: {len(counters)} VMs where there is one")
        if counters[0]["error"]:
            raise vm.Failure(f"infill: {counters[0]['error']}")
        return counters[0]

    def first_work(self, run):
        self.start_stat()
        counters = self.take_stat()
        run["faults"] = counters["faults"]
        run["stall_ms"] = counters["stall_ns"] / 1e6

    def settle(self, run):
        """The trace must hold what the request needed and no more: wait for its window to close."""
        deadline = time.monotonic() + 60
        while not os.path.exists(self.trace) or not os.path.getsize(self.trace):
            if time.monotonic() > deadline:
                raise vm.Failure(f"infill: no trace written to {self.trace} after 60 s")
            time.sleep(0.01)

    def finish(self, guest, run):
        deadline = time.monotonic() + 60
        while True:
            self.start_stat()
            counters = self.take_stat()
            if counters["times"]["resident_ns"]:
                break
            if time.monotonic() > deadline:
                raise vm.Failure(f"infill: not all pages resident after 60 s: "
                                 f"{counters['installs']} of {counters['pages']}")
            time.sleep(0.02)
        run["faults_total"] = counters["faults"]
        run["installs"] = counters["installs"]
        run["zero_pages"] = counters["zero_pages"]
        run["latency"] = counters["latency"]

    def collect(self, guest, run):
        run["installed"], run["marks"] = read_timeline(self.work.file("timeline"), guest.spawned_ns)
        if "resident" not in run["marks"]:
            raise vm.Failure("infill: timeline: no mark `resident`")
        run["resident_ms"] = run["marks"]["resident"]

    def end(self):
        if self.stat and self.stat.poll() is None:
            self.stat.kill()
            self.stat.wait()


class Traced(Untraced):
    """(d) infill with the trace that (c) recorded."""

    title = "(d) infill, with the trace"

    def trace_options(self):
        return ["--trace", self.trace]

    def settle(self, run):
        """Nothing to wait for."""


WAYS = {"mapped": Mapped, "naive": Naive, "untraced": Untraced, "trace": Traced}


def read_timeline(path, start_ns):
    """Return the installs [(ms, offset, bytes, class)] in order of time, and marks {name: ms}."""
    installs, marks = [], {}
    with open(path, encoding="ascii") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            try:
                ms = (int(fields[0]) - start_ns) / 1e6
                if fields[1] == "-":
                    marks.setdefault(fields[3], ms)
                else:
                    installs.append((ms, int(fields[1]), int(fields[2]), fields[3]))
            except (IndexError, ValueError):
                raise vm.Failure(f"{path}:{number}: not a line of a timeline: {line!r}") from None
    installs.sort()
    return installs, marks


def measure(way, guest, snapshot, run):
    """The restore itself."""
    def since():
        return (time.monotonic_ns() - guest.spawned_ns) / 1e6

    before = process_faults(guest.qemu_pid)
    guest.restore(snapshot.state)
    run["restored_ms"] = since()
    run["guest_work_ms"] = snapshots.ask_work(guest, snapshot.expected) / 1e6
    run["first_work_ms"] = since()
    after = process_faults(guest.qemu_pid)
    run["qemu_minor_faults"] = after[0] - before[0]
    run["qemu_major_faults"] = after[1] - before[1]
    way.first_work(run)
    way.settle(run)
    snapshots.ask_check(guest, snapshot.expected)
    run["all_checked_ms"] = since()
    way.finish(guest, run)
    status = guest.quit()
    if status:
        raise vm.Failure(f"{guest.command()[0]}: exit {status} after QMP quit: {guest.errors()}")
    way.collect(guest, run)


def restore(name, cache, snapshot, trace, keep=False):
    """Restore once by WAYS[name] with the page cache "cold" or "warm"; return the figures.

    trace   the file that "untraced" writes and "trace" reads
    Any wrong byte, and any change of the saved image, raises vm.Failure.
    """
    run = {"way": name, "cache": cache, "faults": None, "stall_ms": None, "resident_ms": None}
    with vm.WorkDirectory(keep) as work:
        way = WAYS[name](snapshot, work, trace)
        try:
            if cache == "cold":
                snapshots.make_cold(way.memory)
            else:
                snapshots.make_warm(way.memory)
            run["cached_mib"] = snapshots.cached_pages(way.memory) * snapshots.PAGE / 2**20
            with vm.Vm(way.memory, incoming=True, accel=snapshot.accel, cpus=snapshot.cpus,
                       work=work, **way.options()) as guest:
                measure(way, guest, snapshot, run)
            snapshot.check_unchanged()
        except vm.Failure as failure:
            raise vm.Failure(f"{way.title}, {cache}: {failure}") from None
        finally:
            way.end()
    if name == "mapped":
        run["faults"] = run["qemu_minor_faults"] + run["qemu_major_faults"]
    return run
