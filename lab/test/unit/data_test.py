#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The files of machines and cases: what is there can be read, what is wrong is refused with its place.

To guard another rule add a row to BAD.
"""
import os
import re
import sys

import tap

ROOT = os.environ["INFILL_ROOT"]
LAB = os.path.join(ROOT, "lab")
sys.path[:0] = [LAB, os.path.join(ROOT, "guest"), os.path.join(ROOT, "scripts", "running")]
# pylint: disable=wrong-import-position
import data
import initrd
import programs

GOOD = {"about": "text", "program": "t", "group": "new", "timeout": "5"}
MACHINE = {"about": "text", "arch": "arm64", "qemu": "qemu-system-aarch64 -cpu max", "console": "ttyAMA0",
           "cpus": "2", "threads": "multi", "memory": "512", "says a \\d": "why"}


def write(name, values, extra=""):
    """A file with these lines."""
    path = os.path.join(os.environ["TMPDIR"], name)
    with open(path, "w", encoding="utf-8") as file:
        file.write("# comment\n" + "".join(f"{key} = {value}\n" for key, value in values.items()) + extra)
    return path


def case(changes=()):
    """A case with keys added."""
    return data.Case(write("case", {**GOOD, **dict(changes)}))


@tap.test("every machine and every case can be read, and its program has a source")
def all_files():
    machines = [data.machine(name) for name in data.names("machines")]
    tap.equal(len(machines), 8, "machines")
    for one in data.all_cases():
        for name in [one.program, *one.beside] if one.own else []:
            tap.true(os.path.exists(os.path.join(ROOT, name)), name)
        tap.true(any(machine.skip(one) is None for machine in machines), f"a machine runs {one.name}")


def changed_selftests():
    """The programs of KVM's selftests that the series adds or changes."""
    found = set()
    for name in os.listdir(os.path.join(ROOT, "kernel", "patches")):
        with open(os.path.join(ROOT, "kernel", "patches", name), encoding="utf-8") as file:
            # What a patch changes, and in `series` what is kept as a file.
            found |= set(re.findall(r"^(?:\+\+\+ b/|\t)tools/testing/selftests/kvm/((?:\w+/)?\w+_test)\.c$",
                                    file.read(), re.MULTILINE))
    return found


@tap.test("what the series has of a selftest runs in a case that is not compared with the base")
def changed():
    wanted = changed_selftests()
    tap.true({"set_memory_region_test", "x86/private_mem_kvm_exits_test", "userfault_test"} <= wanted,
             f"the series' selftests {wanted}")
    run = {one.program for one in data.all_cases() if one.group != "upstream"}
    tap.equal(sorted(wanted - run), [], "selftests that no case runs")


@tap.test("./check --full runs every machine")
def checked():
    run = {words[-1] for group in ("lab", "lab-machines") for words in programs.LAB_RUNS[group].values()}
    tap.equal(sorted(run), data.names("machines"), "the machines of the groups lab and lab-machines")


BAD = {
    "an unknown key": (GOOD, "colour = red\n", "colour: not a known key"),
    "a line without a value": (GOOD, "about\n", "about: not a known key"),
    "a key given twice": (GOOD, "about = again\n", "given twice"),
    "a key that is missing": ({key: GOOD[key] for key in GOOD if key != "timeout"}, "", "timeout: missing"),
    "a time that is none": ({**GOOD, "timeout": "soon"}, "", "timeout: soon"),
    "no time": ({**GOOD, "timeout": "0"}, "", "timeout: 0"),
    "an unknown group": ({**GOOD, "group": "old"}, "", "known are new"),
    "an unknown architecture": ({**GOOD, "arch": "sparc"}, "", "known are x86_64"),
    "only without a reason": ({**GOOD, "only": "arm64-vhe"}, "", "not `MACHINE...: why`"),
    "a size of pages that is none": ({**GOOD, "hugepages-big": "3"}, "", "not a size"),
    "a size without its pages": (GOOD, "hugepages- = 3\n", "not a known key"),
    "a file that nothing makes": ({**GOOD, "files": "vmlinuz disk"}, "", "files: disk"),
    "a program that nothing makes": ({**GOOD, "program": "files/disk"}, "", "program: disk"),
    "a selftest and a source in one program": ({**GOOD, "program": "t lab/init.c"}, "", "only .c files"),
    "CPUs of an unknown architecture": ({**GOOD, "cpus sparc": "1"}, "", "known are x86_64"),
    "no CPUs": ({**GOOD, "cpus arm64": "0"}, "", "cpus arm64: 0"),
}


def bad(values, extra, part):
    """The file is refused, with its name and so much."""
    path = write("case", values, extra)
    try:
        data.Case(path)
    except data.Wrong as wrong:
        tap.contains(str(wrong), path, "the error")
        tap.contains(str(wrong), part, "the error")
    else:
        raise AssertionError("it was accepted")


for NAME, ROW in BAD.items():
    tap.add(f"refused: {NAME}", bad, *ROW)


@tap.test("a case's plan has its settings, its time and its words")
def plan():
    made = case({"arguments": "-b 4M 'two words'", "thp": "always", "hugepages-2m": "8", "sysctl vm.x": "1"})
    tap.equal(made.plan(7).split("\n"), [
        "case\tcase\t7", "pool\t/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages\t8",
        "set\t/sys/kernel/mm/transparent_hugepage/enabled\talways", "set\t/proc/sys/vm/x\t1",
        "run\t/selftests/t\t-b\t4M\ttwo words", ""], "the plan")
    tap.equal(initrd.plan([made], "debug").split("\n")[0], "case\tcase\t40", "its time in a debug kernel")


@tap.test("a line that begins with a blank goes on with the one before")
def continued():
    made = data.Case(write("case", GOOD, "arguments = -a\n  -b\n"))
    tap.equal(made.arguments, ["-a", "-b"], "arguments")


@tap.test("a machine's QEMU can be told more for a kernel with larger pages")
def pages():
    machine = data.Machine(write("arm64-x", MACHINE, "qemu 16k = -cpu b\n"))
    tap.equal(machine.command(None), machine.qemu, "for the smallest pages")
    tap.equal(machine.command("64k"), machine.qemu, "for pages of 64k")
    tap.equal(machine.command("16k"), machine.qemu + ["-cpu", "b"], "for pages of 16k")
    try:
        data.Machine(write("arm64-x", MACHINE, "qemu 4k = -cpu b\n"))
    except data.Wrong as wrong:
        tap.contains(str(wrong), "known are 16k 64k", "what other pages are told")
    else:
        raise AssertionError("other pages were accepted")


@tap.test("a machine skips what is not for it, with the reason")
def skips():
    machine = data.Machine(write("arm64-x", MACHINE, "skip ca* = too slow\n"))
    tap.equal(machine.skip(case()), "too slow", "by the machine's file")
    machine = data.Machine(write("arm64-x", MACHINE))
    tap.equal(machine.skip(case()), None, "a case for all")
    tap.equal(machine.skip(case({"arch": "x86_64"})), "for x86_64 only", "another architecture")
    tap.equal(machine.skip(case({"only": "x86-* arm64-y: as I say"})), "as I say", "another machine")
    tap.equal(machine.skip(case({"only": "arm64-*: as I say"})), None, "this machine")


@tap.test("a group leaves out other architectures, a name does not")
def groups():
    machine = data.machine("x86-npt")
    chosen = [one.name for one in data.choose(machine, ["upstream"])]
    tap.true("pre_fault_memory" in chosen and "page_fault" not in chosen, f"upstream's cases {chosen}")
    tap.equal([one.name for one in data.choose(machine, ["page_fault", "page_fault"])], ["page_fault"], "by name")


@tap.test("a kernel that was not built is named with what builds it")
def kernel():
    made = initrd.Kernel("arm64", "debug", "16k", base=True)
    made.image = os.path.join(os.environ["TMPDIR"], "none")
    try:
        made.require()
    except initrd.Failure as failure:
        tap.contains(str(failure), "run kernel/build --base --pages 16k arm64 debug", "the error")
    else:
        raise AssertionError("it was accepted")


tap.run()
