#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The judge of lab runs calls nothing a success that was not one, on recorded logs and output.

To guard another kind of report add its log to REPORTS; another way to end badly, a row to ENDS.
"""
import os
import sys
import tempfile

import tap

LAB = os.path.join(os.environ["INFILL_ROOT"], "lab")
sys.path[:0] = [LAB, os.path.join(os.environ["INFILL_ROOT"], "guest")]
# pylint: disable=wrong-import-position
import baseline
import data
import emulator
import judge
import report

BOOT = """\
[    0.000000] Booting Linux on physical CPU 0x0000000000 [0x000f0510]
[    0.000000] Kernel command line: console=ttyAMA0 panic=-1 printk.devkmsg=on kvm-arm.mode=nested
[    0.210000] kvm [1]: nv: 568 coarse grained trap handlers
[    0.230000] kvm [1]: VHE+NV2 mode initialized successfully
"""
END = """\
[    2.000000] lab: power off
[    2.010000] reboot: Power down
"""

# What each kind of report looks like, as kernels print it.
REPORTS = {
    "a WARN": "[    1.10] WARNING: arch/arm64/kvm/mmu.c:878 at kvm_handle_guest_abort+0x1c/0x80, CPU#1: t/61",
    "a WARN of a debug kernel": "[    1.10][   T61] WARNING: CPU: 1 PID: 61 at virt/kvm/kvm_main.c:4418",
    "a BUG": "[    1.10] kernel BUG at arch/arm64/kvm/nested.c:837!",
    "an oops": "[    1.10] Internal error: Oops: 0000000096000004 [#1]  SMP",
    "a bad access": "[    1.10] Unable to handle kernel NULL pointer dereference at virtual address 0000000000000008",
    "an x86 bad access": "[    1.10] BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "a protection fault": "[    1.10] Oops: general protection fault, probably for non-canonical address 0xdead",
    "a panic": "[    1.10] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b",
    "KASAN": "[    1.10] BUG: KASAN: slab-use-after-free in kvm_gmem_release+0x84/0x190",
    "KCSAN": "[    1.10] BUG: KCSAN: data-race in kvm_gmem_bind / kvm_gmem_unbind",
    "UBSAN": "[    1.10] UBSAN: array-index-out-of-bounds in arch/x86/kvm/mmu/mmu.c:3416:2",
    "lockdep, a circle": "[    1.10] WARNING: possible circular locking dependency detected",
    "lockdep, its line without WARNING": "[    1.10] possible recursive locking detected",
    "lockdep, IRQ state": "[    1.10] inconsistent {HARDIRQ-ON-W} -> {IN-HARDIRQ-W} inconsistent lock state",
    "lockdep given up": "[    1.10] BUG: MAX_LOCKDEP_CHAINS too low!",
    "sleeping in atomic": "[    1.10] BUG: sleeping function called from invalid context at mm/gup.c:12",
    "scheduling in atomic": "[    1.10] BUG: scheduling while atomic: t/61/0x00000002",
    "preemptible per-CPU access": "[    1.10] BUG: using smp_processor_id() in preemptible [00000000] code: t/61",
    "RCU misuse": "[    1.10] WARNING: suspicious RCU usage",
    "an RCU stall": "[    1.10] rcu: INFO: rcu_preempt self-detected stall on CPU",
    "a hung task": "[    1.10] INFO: task t:61 blocked for more than 122 seconds.",
    "a soft lockup": "[    1.10] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [t:61]",
    "a reference count": "[    1.10] refcount_t: underflow; use-after-free.",
    "a bad page": "[    1.10] BUG: Bad page state in process t  pfn:81234",
    "leaked page tables": "[    1.10] BUG: non-zero pgtables_bytes on freeing mm: 4096",
    "an EL2 panic": "[    1.10] kvm [61]: nVHE hyp BUG at: [<ffff800080010000>] __kvm_nvhe_host_share_guest+0x10/0x20!",
    "the host's own EL2 panic": "[    1.10] Kernel panic - not syncing: HYP panic:",
    "a stack trace": "[    1.10] Call trace:",
    "the OOM killer": "[    1.10] Out of memory: Killed process 61 (t) total-vm:2097152kB",
    "an oops after its first line": "[    1.10] Oops: 0000 [#1] SMP",
    "an arm64 error": "[    1.10] Internal error: synchronous external abort: 0000000096000410 [#1]  SMP",
    "a protection fault alone": "[    1.10] traps: general protection fault in rdmsr",
    "a report cut short": "[    1.10] ------------[ cut here ]------------",
    "lockdep off": "[    1.10] INFO: lockdep is turned off.",
    "RCU stalled tasks": "[    1.10] INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-.... }",
    "a corrupt list": "[    1.10] list_add corruption. next->prev should be prev (ffff), but was 0000.",
    "an exception for EL2": "[    1.10] kvm [61]: Invalid host exception to nVHE hyp!",
    "an unknown fault of a guest": "[    1.10] kvm [61]: Unsupported FSC: EC=0x24 xFSC=0x30 ESR_EL2=0x92000030",
    "a leak": "[    1.10] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
}

# What kernels print when all is well.
QUIET = """\
[    0.100000] clocksource: arch_sys_counter: mask: 0x1ffffffffffffff
[    0.100000] rcu: Preemptible hierarchical RCU implementation.
[    0.100000] rcu: RCU calculated value of scheduler-enlistment delay is 25 jiffies.
[    0.100000] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar
[    0.100000] ... MAX_LOCKDEP_SUBCLASSES:  8
[    0.100000] ... MAX_LOCK_DEPTH:          48
[    0.100000] ... MAX_LOCKDEP_KEYS:        8192
[    0.100000] kasan: KernelAddressSanitizer initialized (generic)
[    0.100000] debug: unmapping init [mem 0xffffffff82000000-0xffffffff820fffff]
[    0.100000] kvm [1]: Hyp nVHE mode initialized successfully
[    0.100000] KVM: nVHE hyp stacktrace enabled
[    0.100000] SVM: TSC scaling supported
[    0.100000] random: crng init done
"""


def record(output=(), end=("exit", 0), log="", taint=0, lost=None):
    """A case as the emulator leaves it."""
    made = judge.Record("t")
    made.output, made.end, made.log = list(output), end, log
    made.taint, made.lost = taint, lost
    return made


def expect(made, kind, part=""):
    """The verdict has to be of that kind and to say so much."""
    verdict = judge.case_verdict(made)
    tap.equal(verdict.kind, kind, f"verdict {verdict}")
    tap.contains(" | ".join(verdict.reasons), part, "its reasons")


@tap.test("a case that ends well passes, with TAP and without")
def passes():
    expect(record(["Random seed: 0x6b8b4567"]), "ok")
    expect(record(["TAP version 13", "1..2", "ok 1 - a", "ok 2 - b"]), "ok")
    expect(record(["1..1", "ok 1 - a"], log=QUIET), "ok")


@tap.test("nothing that a healthy kernel says is a report")
def quiet():
    tap.equal(judge.reports(QUIET + BOOT + END), [], "reports")


def one_report(text):
    """A report fails the case in whose time it was made, though the case said ok."""
    log = (BOOT + "[    1.00] lab: start a\n[    1.05] lab: end a\n[    1.06] lab: start b\n"
           + text + "\n[    1.20] lab: end b\n" + END)
    parts, machine = judge.split_log(log)
    expect(record(["1..1", "ok 1 - a"], log=parts["b"]), "fail", "the kernel's log has")
    expect(record(["1..1", "ok 1 - a"], log=parts["a"]), "ok")
    tap.equal(judge.reports(machine), [], "the machine's own part")


for NAME, TEXT in REPORTS.items():
    tap.add(f"a report of the kernel fails its case: {NAME}", one_report, TEXT)

ENDS = {
    "an exit status": (record(end=("exit", 254)), "exit status 254"),
    "a signal": (record(end=("signal", 11)), "signal 11"),
    "time that is up": (
        record(["1..2", "ok 1 - a", "#  RUN  b ...", "# thread 38 (b) S 1", "#   [<0>] f"], end=("timeout", 30)),
        "no end after 30 s: killed, its last line: # RUN b ..."),
    "time that is up in silence": (record(end=("timeout", 30)), "no end after 30 s: killed"),
    "too much output": (record(end=("flood", 30)), "too much"),
    "no result": (record(end=None), "no result"),
    "a machine that ended during it": (record(end=None, lost="no result: the machine ended"), "machine ended"),
    "a program that is not there": (
        record(["lab: /selftests/t: No such file or directory"], ("exit", 127)), "could not be started"),
    "not ok, with exit status 0": (record(["1..2", "ok 1 - a", "not ok 2 - b"]), "not ok 2 - b"),
    "fewer results than planned": (record(["1..2", "ok 1 - a"]), "1 results, 2 planned"),
    "TAP that bails out": (record(["1..1", "ok 1 - a", "Bail out! no"]), "Bail out!"),
    "a tainted kernel": (record(taint=512), "tainted (512)"),
    "not ok and a skip's exit status": (record(["1..1", "not ok 1 - a"], ("exit", 4)), "not ok 1 - a"),
}
for NAME, (MADE, PART) in ENDS.items():
    tap.add(f"a bad end fails: {NAME}", expect, MADE, "fail", PART)

ASSERT = ["#  RUN           b ...", "", "==== Test Assertion Failure ====", "  lib/a_util.c:247: pages == 256",
          "  pid=41 tid=41 errno=0 - Success", "     1\t0x0000000000401234: main at a.c:1",
          "  0x155 != 0x100 (pages != 256)"]
FIRST = {
    "of a result": (record(["1..2", "# t.c:1:a:", "ok 1 a"] + ASSERT + ["# b: Test failed", "not ok 2 b"], ("exit", 1)),
                    "not ok 2 - b: lib/a_util.c:247: pages == 256: 0x155 != 0x100 (pages != 256)"),
    "of the harness": (record(["1..1", "# t.c:9:b:Expected 1 (1) == n (2)", "# b: Test failed", "not ok 1 b"], ("exit", 1)),
                       "not ok 1 - b: t.c:9:b:Expected 1 (1) == n (2)"),
    "of the engine": (record(["1..1", "# line 96: c.faults == 2", "# 3 exits", "not ok 1 - b"], ("exit", 1)),
                      "not ok 1 - b: line 96: c.faults == 2: 3 exits"),
    "in other words": (record(["1..1", "# a", "# b: 3", "#  RUN  b ...", "# c", "not ok 1 - b"], ("exit", 1)),
                       "not ok 1 - b: b: 3: c"),
    "without TAP": (record(ASSERT, ("exit", 254)),
                    "exit status 254: lib/a_util.c:247: pages == 256: 0x155 != 0x100 (pages != 256)"),
    "after the last result": (record(["1..2", "ok 1 a"] + ASSERT, ("exit", 254)),
                              "exit status 254: lib/a_util.c:247: pages == 256: 0x155 != 0x100 (pages != 256)"),
    "of nothing": (record(["1..1", "not ok 1 b"], ("exit", 1)), "not ok 1 - b"),
}


def first_reason(made, reason):
    """A failed case's first reason, with which its line in a log of ./check begins."""
    tap.equal(judge.case_verdict(made).reasons[0], reason, "the first reason")


for NAME, (MADE, PART) in FIRST.items():
    tap.add(f"a failure names the assertion: {NAME}", first_reason, MADE, PART)


@tap.test("a result's line has the first reasons of a failure, what the kernel's log has before all")
def line():
    made = judge.case_verdict(record(["1..4", "not ok 1 a", "not ok 2 b"], log=REPORTS["a WARN"]))
    text = report.directive(made)
    tap.true(text.startswith(" # the kernel's log has: WARNING: arch/arm64"), f"the beginning of {text!r}")
    tap.true(text.endswith("; not ok 1 - a; not ok 2 - b; and 1 more"), f"the end of {text!r}")
    tap.equal(report.directive(judge.Verdict("skip", ["no # THP", "x"])), " # SKIP no  THP", "of a skip")
    tap.equal(report.directive(judge.Verdict("ok", [])), "", "of a success")


@tap.test("a case that skips itself is skipped, with its reason")
def skips():
    expect(record(["1..0 # SKIP - Requirement not met: kvm_has_cap(KVM_CAP_X)"], ("exit", 4)), "skip",
           "KVM_CAP_X")
    expect(record(["no MTE here"], ("exit", 4)), "skip", "no MTE here")
    expect(record(["1..1", "ok 1 # SKIP no THP"]), "skip", "no THP")
    expect(record(["1..2", "ok 1 # SKIP no THP", "ok 2 - b"]), "ok")


@tap.test("what comes late counts for the case that ran before it")
def late():
    parts, _ = judge.split_log("lab: start a\nlab: end a\nWARNING: late\nlab: start b\nlab: end b\n")
    tap.equal(judge.reports(parts["a"]), ["WARNING: late"], "reports of a")
    tap.equal(judge.reports(parts["b"]), [], "reports of b")


@tap.test("an allowance covers its own line and no other")
def allowance():
    allows = data.patterns({"at known_function": "known upstream"}, "machine")
    log = "[ 1.0] WARNING: a.c:1 at known_function+0x1/0x2\n[ 1.1] WARNING: b.c:1 at other+0x1/0x2"
    tap.equal(judge.reports(log, allows), ["WARNING: b.c:1 at other+0x1/0x2"], "reports")


class Machine:
    """What machine_reasons() asks of a machine."""
    says = data.patterns({r"VHE\+NV2 mode": "no nested virtualization"}, "machine")
    allows = []


def machine(log, done, part):
    """The machine's reasons contain @part; None: there are none."""
    reasons = judge.machine_reasons(Machine, log, done)
    if part is None:
        tap.equal(reasons, [], "reasons")
    else:
        tap.contains(" | ".join(reasons), part, "reasons")


CASE = "[    1.00] lab: start a\n[    1.05] lab: end a\n"
for NAME, ARGUMENTS in {
        "a machine that came and went is good": (BOOT + CASE + END, True, None),
        "a WARN before the first case counts": (BOOT + REPORTS["a WARN"] + "\n" + CASE + END, True, "WARNING"),
        "a WARN at power-off counts": (
            BOOT + CASE + END.replace("\n", "\n" + REPORTS["a WARN"] + "\n", 1), True, "WARNING"),
        "a machine without its mode is another": (
            BOOT.replace("VHE+NV2", "VHE") + CASE + END, True, "no nested virtualization"),
        "a machine that did not finish": (BOOT + CASE, False, "did not reach its end"),
        "a machine that did not power off": (BOOT + CASE + "lab: power off\n", True, "powered off"),
        "an empty log": ("", False, "did not reach its end"),
}.items():
    tap.add(NAME, machine, *ARGUMENTS)


def pair(base, series, kind):
    """A comparison's verdict."""
    made = [judge.Verdict(one, ["why"] if one != "ok" else []) for one in (base, series)]
    tap.equal(baseline.judge_pair(*made).kind, kind, f"{base} without the series, {series} with it")


for ROW in (("ok", "ok", "ok"), ("ok", "fail", "fail"), ("ok", "skip", "fail"), ("fail", "fail", "skip"),
            ("fail", "ok", "ok"), ("skip", "skip", "skip"), ("skip", "ok", "ok"), ("skip", "fail", "fail")):
    tap.add(f"compared: {ROW[0]} without the series and {ROW[1]} with it is {ROW[2]}", pair, *ROW)


def reported(base, series, kind):
    """A comparison's verdict on two failures, with a report in the kernel's log or without."""
    warn = judge.reports(REPORTS["a WARN"])
    made = []
    for log in (base, series):
        record = judge.Record("case")
        record.end, record.log = ("exit", 1), REPORTS["a WARN"] if log else ""
        made.append(judge.case_verdict(record))
    verdict = baseline.judge_pair(*made)
    tap.equal(verdict.kind, kind, "the verdict")
    tap.equal(any(warn[0] in reason for reason in verdict.reasons), kind == "fail" or base, "it is told")


for ROW in ((False, True, "fail"), (True, True, "skip"), (True, False, "skip"), (False, False, "skip")):
    tap.add(f"compared: failed, report without the series {ROW[0]}, with it {ROW[1]}", reported, *ROW)


@tap.test("compared: a kept result still says whether the kernel reported something")
def kept_report():
    with tempfile.TemporaryDirectory() as folder:
        store = object.__new__(baseline.Store)
        store.folder, store.key = folder, lambda case: "1"
        for value in (True, False):
            store.put(judge.Record("case"), judge.Verdict("fail", ["why"], reported=value))
            tap.equal(store.get(judge.Record("case")).reported, value, "after put() and get()")


class Options:
    """What Boot.line() asks of the options."""
    limits = emulator.Limits("plain", False)

    @staticmethod
    def output(_name, _line):
        """Nobody reads it here."""


@tap.test("a case cannot speak for the machine's init")
def forged():
    case = data.case("self-ok")
    boot = emulator.Boot(Machine, None, "", Options, [case])
    for line in ("start self-ok", " end self-ok exit 0 1 0", " done", " 1..1", "end self-ok exit 9 1500000 0"):
        boot.line(line)
    made = boot.records["self-ok"]
    tap.equal(made.end, ("exit", 9), "its end")
    tap.equal(made.output, ["end self-ok exit 0 1 0", "done", "1..1"], "its output")
    tap.equal(made.seconds, 1.5, "its time")
    tap.equal(boot.done, False, "the machine's end")


tap.run()
