# SPDX-License-Identifier: MIT
"""How a Linux guest is restored in an emulated machine: measured, summed up, compared.

bench/vm and ./demo --kvm are the programs. The lab's case vm_perf measures and prints lines, which
read_output() takes; what the figures mean is in bench/README.md. Times are nanoseconds of the
machine's clock, which under --icount counts instructions.
"""
import json
import os
import re
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "guest"))
# pylint: disable=wrong-import-position
from vm import Failure, die_with_parent

CASE = "vm_perf"
# Seconds of this host that a run may take: to boot and save the guest, and for each restore. On two
# CPUs with nothing else to do it is a tenth.
PREPARE_SECONDS, RESTORE_SECONDS = 600, 60
RUN = re.compile(r"run (\S+) started (\d+) run (\d+) work (\d+) again (\d+) checked (\d+)$")
STAT = re.compile(r"stat (\S+) (work|checked) (\{.*\})$")
# What is printed, in which words; lab/programs/vm_perf.c has the options of each.
WAYS = {
    "eager-memfd": "memfd, all of it read first",
    "eager-memfd-prefault": "the same, and mapped",
    "mmap-memfd": "the image mapped",
    "uffd-memfd": "memfd, userfaultfd",
    "uffd-memfd-trace": "the same, by the trace",
    "userfault-memfd": "memfd, KVM Userfault",
    "userfault-memfd-trace": "the same, by the trace",
    "userfault-memfd-trace-prefault": "the same, prefaulted",
    "eager-guest_memfd": "guest_memfd, all of it read first",
    "eager-guest_memfd-prefault": "the same, and mapped",
    "userfault-guest_memfd": "guest_memfd, KVM Userfault",
    "userfault-guest_memfd-trace": "the same, by the trace",
    "userfault-guest_memfd-trace-prefault": "the same, prefaulted",
}
# Ways whose guest waits for nothing: what the others take longer is their stall.
BASES = {"memfd": "eager-memfd-prefault", "guest_memfd": "eager-guest_memfd-prefault"}
# Its faults are the guest's first touches.
TOUCHES = {"memfd": "eager-memfd", "guest_memfd": "eager-guest_memfd"}
# Name of a ratio: what it should be at most, or at least.
TARGETS = {
    "userfault_vs_uffd_stall_memfd": ("<=", 0.5),
    "trace_prefault_faults_gone": (">=", 0.95),
    "guest_memfd_vs_memfd": ("<=", 1.1),
}


def backing_of(way):
    """memfd or guest_memfd."""
    return way.split("-")[1]


def counts(stat):
    """What infill-vmm's stat says, summed over the vCPUs."""
    vcpus = stat["vcpus"]
    pager = stat["pager"] or {}
    return {
        "faults": sum(vcpu["kvm"].get("pf_taken", 0) for vcpu in vcpus),
        "exits": sum(vcpu["kvm"].get("exits", 0) for vcpu in vcpus),
        "user_exits": sum(sum(vcpu["exits"].values()) for vcpu in vcpus),
        "memory_exits": sum(vcpu["exits"].get("memory_fault", 0) for vcpu in vcpus),
        "pager_faults": pager.get("faults", 0),
        "demand_pages": pager.get("demand_pages", 0),
        "trace_pages": pager.get("trace_pages", 0),
        "pager_stall_ns": pager.get("stall_ns", 0),
    }


def figures_of(run, stats):
    """The figures of one restore. The time in which stat was asked for is left out."""
    started, began, work, again, checked = run
    figures = {
        "start": began - started,
        "work": work - began,
        "checked": work - began + checked - again,
    }
    for when in ("work", "checked"):
        figures.update({f"{name}_{when}": value for name, value in stats[when].items()})
    return figures


def read_output(lines):
    """{way: [figures of each round]} from what the case prints."""
    rounds, stats = {}, {}
    for line in lines:
        if match := STAT.match(line):
            way, when, text = match.groups()
            stats.setdefault(way, {})[when] = counts(json.loads(text))
        elif match := RUN.match(line):
            way, *times = match.groups()
            rounds.setdefault(way, []).append(figures_of(map(int, times), stats.pop(way)))
    return rounds


def medians(rounds):
    """{way: {figure: median}}, with the stalls."""
    table = {way: {name: statistics.median(figures[name] for figures in all_of)
                   for name in all_of[0]} for way, all_of in rounds.items()}
    for way, figures in table.items():
        base, touches = BASES[backing_of(way)], TOUCHES[backing_of(way)]
        for when in ("work", "checked"):
            if base in table:
                figures[f"stall_{when}"] = figures[when] - table[base][when]
            if base in table and touches in table:
                figures[f"stall_page_{when}"] = figures[f"stall_{when}"] / table[touches][f"faults_{when}"]
    return table


def ratio(table, over, under, figure):
    """OVER's figure / UNDER's; None where one is missing or nothing to divide by."""
    a, b = (table.get(way, {}).get(figure) for way in (over, under))
    return round(a / b, 4) if a is not None and b else None


def ratios(table):
    """{name: ratio}, flat. Times are from the first KVM_RUN to the end of the check, or of the first work."""
    flat = {}
    for when, end in (("checked", ""), ("work", "_work")):
        for kind in ("", "-trace"):
            name = kind.replace("-", "_")
            flat[f"userfault_vs_uffd_stall_memfd{name}{end}"] = ratio(
                table, "userfault-memfd" + kind, "uffd-memfd" + kind, f"stall_{when}")
        for backing in ("memfd", "guest_memfd"):
            left = ratio(table, f"userfault-{backing}-trace-prefault", f"userfault-{backing}", f"faults_{when}")
            flat[f"trace_prefault_faults_gone_{backing}{end}"] = None if left is None else round(1 - left, 4)
        for kind in ("", "-trace", "-trace-prefault"):
            name = kind.replace("-", "_")
            flat[f"guest_memfd_vs_memfd{name}{end}"] = ratio(
                table, "userfault-guest_memfd" + kind, "userfault-memfd" + kind, when)
        flat[f"guest_memfd_vs_memfd_stall{end}"] = ratio(
            table, "userfault-guest_memfd", "userfault-memfd", f"stall_{when}")
    gone = [flat[f"trace_prefault_faults_gone_{backing}"] for backing in ("memfd", "guest_memfd")]
    known = [value for value in gone if value is not None]
    flat["trace_prefault_faults_gone"] = min(known) if known else None
    return {name: value for name, value in flat.items() if value is not None}


def verdict(name, value):
    """What is printed behind a ratio that has a target."""
    if name not in TARGETS:
        return ""
    sign, target = TARGETS[name]
    reached = value <= target if sign == "<=" else value >= target
    return f"{sign} {target}: " + ("reached" if reached else "missed")


def measure(machine, rounds, ways):
    """{way: [figures of each round]} of one boot of the machine. All ways take turns in it."""
    output = os.path.join(ROOT, "build", "bench", f"vm-{machine}.out")
    os.makedirs(os.path.dirname(output), exist_ok=True)
    seconds = PREPARE_SECONDS + RESTORE_SECONDS * rounds * len(ways)
    command = [os.path.join(ROOT, "lab", "run"), "--icount", "--timeout", str(seconds), "--output", output,
               machine, CASE, "--", "-r", str(rounds), "-w", ",".join(ways)]
    # Its progress line is for a person at stderr; its results are not.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          check=False, preexec_fn=die_with_parent)
    if done.returncode:
        sys.stderr.write(done.stdout)
        raise Failure(f"{machine}: the case {CASE} failed")
    with open(output, encoding="utf-8") as file:
        found = read_output(map(str.strip, file))
    missing = [way for way in ways if len(found.get(way, ())) != rounds]
    if missing:
        raise Failure(f"{output}: no figures, or not of every round, for {', '.join(missing)}")
    return found
