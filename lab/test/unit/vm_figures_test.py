#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""What bench/vm and ./demo --kvm make of what the case vm_perf prints, and their wrong usage."""
import json
import os
import subprocess
import sys

import tap

ROOT = os.environ["INFILL_ROOT"]
sys.path[:0] = [os.path.join(ROOT, "guest"), os.path.join(ROOT, "bench")]
sys.dont_write_bytecode = True
# pylint: disable=wrong-import-position
import demo_kvm
import vm_figures


def stat(faults, pager=None):
    """What infill-vmm stat prints, of two vCPUs."""
    vcpu = {"exits": {"io": 3, "memory_fault": 2}, "kvm": {"pf_taken": faults, "exits": 50, "other": 9}}
    return json.dumps({"now_ns": 1, "run_ns": 1, "vcpus": [vcpu, vcpu], "kvm": {"pages_4k": 7}, "pager": pager})


def lines(way, run, work, again, checked, faults=(10, 20)):
    """What one restore prints."""
    return [f"stat {way} work {stat(faults[0])}", f"stat {way} checked {stat(faults[1])}",
            f"run {way} started 100 run {run} work {work} again {again} checked {checked}"]


@tap.test("the time that stat takes counts for nothing, and vCPUs are summed up")
def read_one():
    found = vm_figures.read_output(["# 0.1 console: run fast", *lines("mmap-memfd", 150, 400, 700, 900), "done"])
    tap.equal(list(found), ["mmap-memfd"], "ways")
    figures = found["mmap-memfd"][0]
    tap.equal((figures["start"], figures["work"], figures["checked"]), (50, 250, 450), "times")
    tap.equal((figures["faults_work"], figures["faults_checked"]), (20, 40), "faults")
    tap.equal((figures["exits_work"], figures["user_exits_work"], figures["memory_exits_work"]), (100, 10, 4), "exits")


@tap.test("what the pager says is taken; without one it is zero")
def read_pager():
    figures = vm_figures.counts(json.loads(stat(1, {"faults": 5, "demand_pages": 6, "stall_ns": 8})))
    tap.equal((figures["pager_faults"], figures["demand_pages"], figures["pager_stall_ns"]), (5, 6, 8), "pager")
    tap.equal(vm_figures.counts(json.loads(stat(1)))["pager_faults"], 0, "no pager")


def sample():
    """Rounds of the ways that the ratios need: a stall of 1000 by uffd, 400 by userfault."""
    text = []
    for shift in (0, 5, 50):
        for way, time in (("eager-memfd-prefault", 1000), ("eager-memfd", 1100), ("uffd-memfd", 2000 + shift),
                          ("userfault-memfd", 1400), ("userfault-guest_memfd", 1540)):
            text += lines(way, 0, time, time, time)
        text += lines("userfault-memfd-trace-prefault", 0, 1, 1, 1, (0, 1))
        text += lines("userfault-guest_memfd-trace-prefault", 0, 1, 1, 1, (0, 2))
    return vm_figures.medians(vm_figures.read_output(text))


@tap.test("a stall is the time beyond that of a guest that waits for nothing")
def stalls():
    table = sample()
    tap.equal(table["uffd-memfd"]["stall_checked"], 1005, "the median round's")
    tap.equal(table["userfault-memfd"]["stall_page_checked"], 400 / 40, "a page that it touches")
    tap.true("stall_checked" not in table["userfault-guest_memfd"], "none where the base was not measured")


@tap.test("ratios, and what has no base is left out")
def all_ratios():
    flat = vm_figures.ratios(sample())
    tap.equal(flat["userfault_vs_uffd_stall_memfd"], round(400 / 1005, 4), "stall")
    tap.equal(flat["trace_prefault_faults_gone_memfd"], 0.95, "faults gone")
    tap.equal(flat["trace_prefault_faults_gone"], 0.9, "the worse one")
    tap.equal(flat["guest_memfd_vs_memfd"], 1.1, "guest_memfd")
    tap.true("guest_memfd_vs_memfd_stall" not in flat, "no stall without its base")


@tap.test("a target is said to be reached or missed")
def targets():
    tap.equal(vm_figures.verdict("userfault_vs_uffd_stall_memfd", 0.5), "<= 0.5: reached", "at")
    tap.equal(vm_figures.verdict("userfault_vs_uffd_stall_memfd", 0.51), "<= 0.5: missed", "above")
    tap.equal(vm_figures.verdict("trace_prefault_faults_gone", 0.949), ">= 0.95: missed", "below")
    tap.equal(vm_figures.verdict("guest_memfd_vs_memfd_stall", 3), "", "none")


@tap.test("every way is one that vm_perf has, and the demonstration's are among them")
def same_ways():
    with open(os.path.join(ROOT, "lab", "programs", "vm_perf.c"), encoding="utf-8") as file:
        source = file.read()
    for way in vm_figures.WAYS:
        tap.true(f'{{ "{way}",' in source, way)
    tap.true(set(demo_kvm.WAYS) | set(demo_kvm.BASES) <= set(vm_figures.WAYS), "the demonstration's ways")


USAGE = {
    "bench/vm, an unknown way": (["bench/vm", "--ways", "mmap-memfd,fast"], "--ways: fast: unknown"),
    "bench/vm, no rounds": (["bench/vm", "--rounds", "0"], "--rounds: 0: give 1 to 100"),
    "bench/vm, an unknown machine": (["bench/vm", "--machine", "x86-fast"], "x86-fast"),
    "bench/vm, a folder that is not there": (["bench/vm", "--json", "/nowhere/a"], "/nowhere/a: no such directory"),
    "demo --kvm, an unknown machine": (["guest/demo_kvm.py", "--machines", "sparc"], "sparc: unknown, known are arm64-vhe"),
    "demo --kvm, no runs": (["guest/demo_kvm.py", "--runs", "0"], "--runs: 0"),
    "demo --kvm, a folder that is not there": (["guest/demo_kvm.py", "--svg", "/nowhere/a"], "--svg: /nowhere/a: no such"),
}


def wrong_usage(words, why):
    """Refused with status 2 and its reason, before anything is started."""
    # Without programs to start, so that what is not refused boots no machine here.
    done = subprocess.run([os.path.join(ROOT, words[0]), *words[1:]], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False, timeout=60,
                          env={**os.environ, "PATH": "/nowhere"})
    tap.equal(done.returncode, 2, "status")
    tap.true(why in done.stderr, done.stderr)


for name, (command, reason) in USAGE.items():
    tap.add(f"wrong usage: {name}", wrong_usage, command, reason)

tap.run()
