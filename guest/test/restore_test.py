#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The guest group: a real Linux guest saved and lazily restored in QEMU, its data checked. TAP.

usage: restore_test.py [NAME...]

To add a test write a function named test_*; its docstring is its TAP line, tap.py says how it fails
and skips. Tests run in the order of this file, on one snapshot that is made by the first.
"""
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

GUEST = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [GUEST, os.path.join(os.path.dirname(GUEST), "scripts")]
# pylint: disable=wrong-import-position
import restore
import snapshot as snapshots
import tap
import vm

PAGE = 4096


class Context:
    """What tests share: a directory, and the snapshot in it."""

    def __init__(self, work):
        self.work = work
        self._snapshot = None

    @property
    def snapshot(self):
        """Made on first use, never the demo's: the save is a part of what is tested."""
        if self._snapshot is None:
            self._snapshot = snapshots.Snapshot(directory=self.work.file("snapshot")).ensure()
        return self._snapshot

    @contextlib.contextmanager
    def work_copy(self):
        """A copy of the memory file, which the guest may write to."""
        with vm.WorkDirectory() as work:
            snapshots.copy(self.snapshot.memory, work.file("memory"))
            yield work.file("memory")


def need_infill():
    """Skip where the command was not built."""
    for path in (restore.INFILL, restore.SHIM):
        if not os.path.exists(path):
            tap.skip(f"{os.path.relpath(path, vm.ROOT)} is not built")


@contextlib.contextmanager
def attached(context, *options, **settings):
    """A guest under `infill attach` with its control socket; restored, but not asked anything."""
    need_infill()
    snapshot = settings.pop("snapshot", context.snapshot)
    prefix = restore.attach(snapshot.memory, *options, bound=settings.pop("bound", True))
    with vm.WorkDirectory() as work:
        with vm.Vm(snapshot.memory, incoming=True, prefix=prefix, work=work,
                   cpus=snapshot.cpus, **settings) as guest:
            guest.restore(snapshot.state)
            yield guest
    snapshot.check_unchanged()


def stat(guest):
    """`infill stat --json` of the guest's pager."""
    done = subprocess.run([restore.INFILL, "stat", "--json", "control"], cwd=guest.work.path,
                          capture_output=True, text=True, timeout=20, check=False)
    tap.true(done.returncode == 0, f"infill stat: exit {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def wait_for(what, condition, seconds=30):
    """Poll until true."""
    deadline = time.monotonic() + seconds
    while not condition():
        tap.true(time.monotonic() < deadline, f"{what}: not after {seconds} s")
        time.sleep(0.02)


def ask_all(guest, snapshot):
    """A request and the check of all data."""
    snapshots.ask_work(guest, snapshot.expected)
    snapshots.ask_check(guest, snapshot.expected)


def classes(guest):
    """{class: bytes} of a guest's timeline; call it when QEMU has ended."""
    total = {}
    for _, _, length, kind in restore.read_timeline(guest.work.file("timeline"), 0)[0]:
        total[kind] = total.get(kind, 0) + length
    return total


def quit_cleanly(guest):
    """QEMU's exit status must come through."""
    status = guest.quit()
    tap.true(status == 0, f"exit status {status} after QMP quit: {guest.errors()}")


def record_key(page):
    """The first word of a record, as store.c makes it: how its page is found in the image."""
    mask = (1 << 64) - 1
    x = (0x696e66696c6c + page + 0x9e3779b97f4a7c15) & mask
    x = ((x ^ x >> 30) * 0xbf58476d1ce4e5b9) & mask
    x = ((x ^ x >> 27) * 0x94d049bb133111eb) & mask
    return (x ^ x >> 31).to_bytes(8, "little")


def data_pages(path):
    """How many pages of a file are not all zero."""
    zero, count = bytes(PAGE), 0
    with open(path, "rb") as file:
        for start, end in snapshots.data_extents(file.fileno()):
            file.seek(start)
            data = file.read(end - start)
            count += sum(data[at:at + PAGE] != zero for at in range(0, len(data), PAGE))
    return count


def find_record(path, page):
    """Where in the memory file a record is."""
    key = record_key(page)
    with open(path, "rb") as file:
        for start, end in snapshots.data_extents(file.fileno()):
            file.seek(start)
            data = file.read(end - start)
            at = data.find(key)
            while at >= 0:
                if (start + at) % PAGE == 0:
                    return start + at
                at = data.find(key, at + 1)
    raise AssertionError(f"record {page}: not in {path}")


def test_save(context):
    """the guest boots, fills its store and is saved; the image holds its records"""
    memory = context.snapshot.memory
    tap.true(os.path.getsize(memory) == vm.MEMORY_MIB << 20, "size of the memory file")
    for page in (0, 12345, 32767):
        find_record(memory, page)


def test_mapped(context):
    """restored from QEMU's own mapped file: all data right"""
    with context.work_copy() as memory:
        with vm.Vm(memory, incoming=True) as guest:
            guest.restore(context.snapshot.state)
            ask_all(guest, context.snapshot)


def find_wrong_byte(snapshot, page, offset):
    """Restore with one wrong byte in a record: the guest names it."""
    with vm.WorkDirectory() as work:
        memory = work.file("memory")
        snapshots.copy(snapshot.memory, memory)
        at = find_record(memory, page) + offset
        with open(memory, "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x10]))
        with vm.Vm(memory, incoming=True, cpus=snapshot.cpus) as guest:
            guest.restore(snapshot.state)
            guest.serial.send(b"check\n")
            try:
                guest.expect("all ok", 60)
            except vm.Failure as failure:
                tap.true(str(failure) == f"guest: BAD page {page} offset {offset}", str(failure))
                return
    raise AssertionError("the guest says that all is right")


def test_wrong_byte(context):
    """one wrong byte in the image is found by the guest, with its page and offset"""
    find_wrong_byte(context.snapshot, 777, 1234)


def test_zero_page(context):
    """a page of zeros instead of data is found by the guest"""
    with context.work_copy() as memory:
        at = find_record(memory, 31000)
        with open(memory, "r+b") as file:
            file.seek(at)
            file.write(bytes(PAGE))
        with vm.Vm(memory, incoming=True) as guest:
            guest.restore(context.snapshot.state)
            guest.serial.send(b"check\n")
            try:
                guest.expect("all ok", 60)
            except vm.Failure as failure:
                tap.true(str(failure).startswith("guest: BAD page 31000 offset "), str(failure))
                return
    raise AssertionError("the guest says that all is right")


def test_naive(context):
    """restored by the plain pager of the demo: all data right"""
    need_infill()
    restore.restore("naive", "warm", context.snapshot, None)


def test_fill_none(context):
    """attach --fill none: all data right, and only what the guest touched was installed"""
    with attached(context, "--fill", "none") as guest:
        ask_all(guest, context.snapshot)
        counters = stat(guest)["vms"][0]
        quit_cleanly(guest)
        kinds = classes(guest)
    tap.true(counters["faults"] > 1000, f"{counters['faults']} faults")
    tap.true(counters["installs"] >= 32768, f"{counters['installs']} pages for 32768 records")
    tap.true(counters["installs"] < data_pages(context.snapshot.memory),
           f"{counters['installs']} pages installed: all that the image has")
    tap.true(not set(kinds) & {"trace", "rest", "poison"}, f"installs by class: {kinds}")


def test_fill_all(context):
    """attach --fill all: all data right, and everything becomes resident"""
    with attached(context, "--fill", "all") as guest:
        ask_all(guest, context.snapshot)
        wait_for("resident", lambda: stat(guest)["vms"][0]["times"]["resident_ns"])
        counters = stat(guest)["vms"][0]
        snapshots.ask_work(guest, snapshots.reference(2)[1], number=2)
        quit_cleanly(guest)
        kinds = classes(guest)
    done = counters["installs"] + counters["duplicates"]
    data = data_pages(context.snapshot.memory)
    tap.true(done >= data, f"{done} pages installed of the {data} that the image has")
    tap.true(kinds.get("rest"), f"no background fill: {kinds}")


def test_trace(context):
    """attach --record, then --trace: all data right, and few faults are left"""
    trace = context.work.file("trace")
    with attached(context, "--record", trace) as guest:
        snapshots.ask_work(guest, context.snapshot.expected)
        recorded = stat(guest)["vms"][0]["faults"]
        wait_for("trace", lambda: os.path.exists(trace) and os.path.getsize(trace))
        snapshots.ask_check(guest, context.snapshot.expected)
        quit_cleanly(guest)
    with attached(context, "--trace", trace, "--fill", "trace") as guest:
        wait_for("the end of the trace", lambda: stat(guest)["vms"][0]["times"]["trace_done_ns"])
        before = stat(guest)["vms"][0]["faults"]
        snapshots.ask_work(guest, context.snapshot.expected)
        after = stat(guest)["vms"][0]["faults"]
        snapshots.ask_check(guest, context.snapshot.expected)
        quit_cleanly(guest)
        kinds = classes(guest)
    tap.true(kinds.get("trace", 0) > 32 << 20, f"installs by class: {kinds}")
    tap.true((after - before) * 50 < recorded,
           f"{after - before} faults after the trace was filled, {recorded} without it")


def test_fill_trace(context):
    """attach --trace --fill trace, asked at once: all data right, no background fill after it"""
    trace = context.work.file("trace")
    if not os.path.exists(trace):
        tap.skip("needs the trace of test_trace")
    with attached(context, "--trace", trace, "--fill", "trace") as guest:
        ask_all(guest, context.snapshot)
        time.sleep(1)
        quit_cleanly(guest)
        kinds = classes(guest)
    tap.true(kinds.get("trace"), f"installs by class: {kinds}")
    tap.true("rest" not in kinds, f"installs by class: {kinds}")


def test_cold(context):
    """attach with a cold page cache: all data right"""
    snapshots.make_cold(context.snapshot.memory)
    with attached(context) as guest:
        ask_all(guest, context.snapshot)
        quit_cleanly(guest)


def test_cpus(context):
    """a guest of two vCPUs: saved, restored by attach, all data right"""
    need_infill()
    snapshot = snapshots.Snapshot(cpus=2, directory=context.work.file("snapshot2")).ensure()
    with attached(context, snapshot=snapshot) as guest:
        ask_all(guest, snapshot)
        quit_cleanly(guest)


def test_cpus_wrong_byte(context):
    """each of two vCPUs finds a wrong byte in its share of the data"""
    snapshot = snapshots.Snapshot(cpus=2, directory=context.work.file("snapshot2")).ensure()
    for page in (12345, 12349):
        find_wrong_byte(snapshot, page, 2222)


def test_worker_killed(context):
    """the pager's worker is killed -9 while the guest works: all data right"""
    with attached(context, "--fill", "none") as guest:
        killed = []
        guest.serial.send(b"go\n")
        for _ in range(5):
            worker = stat(guest)["worker_pid"]
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)
            wait_for("a new worker", lambda: stat(guest)["worker_pid"] not in (0, killed[-1]))
            time.sleep(0.03)
        words = guest.expect("work 1 ok", 60).split()
        tap.true(words[3] == context.snapshot.expected[0], "wrong answer after the kills")
        snapshots.ask_check(guest, context.snapshot.expected)
        quit_cleanly(guest)
    tap.true(len(set(killed)) == 5, f"workers killed: {killed}")


def test_vmm_killed(context):
    """QEMU is killed -9: attach exits with 137 and leaves no process"""
    with attached(context) as guest:
        os.kill(guest.qemu_pid, signal.SIGKILL)
        status = guest.process.wait(20)
    tap.true(status == 137, f"exit status {status}")


def alive(pid):
    """True until a process is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def processes(guest):
    """QEMU, the pager's worker and its supervisor."""
    counters = stat(guest)
    return [guest.qemu_pid, counters["worker_pid"], counters["supervisor_pid"]]


def test_attach_killed(context):
    """attach is killed -9: QEMU goes on, its pager too, all data right; they end together"""
    with attached(context, "--fill", "none", bound=False) as guest:
        pids = processes(guest)
        guest.process.kill()
        guest.process.wait()
        ask_all(guest, context.snapshot)
        tap.true(all(alive(pid) for pid in pids), "QEMU, worker and supervisor live")
        guest.call("quit")
        wait_for("the end of QEMU and pager", lambda: not any(alive(pid) for pid in pids), 20)


def test_driver_killed(context):
    """attach is killed -9 as the demo starts it: neither QEMU nor pager are left"""
    with attached(context) as guest:
        pids = processes(guest)
        guest.process.kill()
        guest.process.wait()
        wait_for("the end of QEMU and pager", lambda: not any(alive(pid) for pid in pids), 10)


def attach(*words):
    """Run attach to its end."""
    need_infill()
    try:
        return subprocess.run([restore.INFILL, "attach", *words], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        raise AssertionError("infill attach: still there after 30 s") from None


def test_never_mapped(context):
    """a VMM that never maps the image: attach says so and exits 1"""
    done = attach("--image", context.snapshot.memory, "--", "/bin/true")
    tap.true(done.returncode == 1, f"exit status {done.returncode}: {done.stderr}")
    tap.true(re.search(r"^infill: .*never mapped .*: .+$", done.stderr, re.M), done.stderr)


def test_no_image(context):
    """an image that is not there: attach names it and exits 1"""
    path = context.work.file("not-there")
    done = attach("--image", path, "--", "/bin/true")
    tap.true(done.returncode == 1, f"exit status {done.returncode}: {done.stderr}")
    tap.true(done.stderr.startswith("infill: ") and path in done.stderr, done.stderr)


def test_unchanged(context):
    """after all of this every byte of the saved image is what it was"""
    context.snapshot.check_unchanged(content=True)


def main():
    """All tests, or those named."""
    tests = {name[len("test_"):]: function for name, function in globals().items()
             if name.startswith("test_")}
    wanted = sys.argv[1:] or list(tests)
    for name in wanted:
        if name not in tests:
            print(f"restore_test: {name}: unknown test", file=sys.stderr)
            sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        vm.qemu_version()
        vm.build_guest()
    except vm.Failure as failure:
        tap.skip_all(" ".join(str(failure).split()))
    vm.remove_stale_directories()
    with vm.WorkDirectory() as work:
        context = Context(work)
        for name in wanted:
            tap.add(f"{name}: {tests[name].__doc__}", tests[name], context)
        tap.run()


if __name__ == "__main__":
    main()
