# SPDX-License-Identifier: MIT
"""Which test programs there are, by group. To add a group add a line to GROUPS."""
import glob
import os
import platform
import re
import sys

# How long a program may take that says nothing else.
TIMEOUT = 300

# infill-vmm's tests for this machine's architecture.
VMM_FOLDER = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())

# Where each group's programs come from. A .c file becomes DIR/test/GROUP/NAME of the build;
# anything else is run as it is when it is executable.
GROUPS = {
    "unit": ["lib/test/unit/*.c", "vmm/test/unit/*.c", f"vmm/test/unit/{VMM_FOLDER}/*.c",
             "lib/test/unit/*", "scripts/test/unit/*", "lab/test/unit/*"],
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
# x86-npt with another MMU of KVM's.
LAB_VARIANTS = ["x86-npt-tdp_mmu-0", "x86-npt-nx_huge_pages"]
LAB_RUNS = {
    "lab": {machine: [machine] for machine in LAB_FIRST},
    "lab-machines": {machine: [machine] for machine in LAB_OTHERS + LAB_VARIANTS},
    "lab-debug": {machine: ["--kernel", "debug", machine] for machine in LAB_FIRST + LAB_OTHERS},
    "lab-pages": {pages: ["--pages", pages, "arm64-vhe"] for pages in ("16k", "64k")},
    "lab-upstream": {machine: ["--compare", machine, "upstream"] for machine in LAB_FIRST + LAB_OTHERS},
}
LAB_TIMEOUT = 6 * 3600
# These run beside others: each takes a CPU, and nothing of the machine that others count.
BESIDE = ["fuzz"]
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
        self.beside = group in BESIDE

    def __str__(self):
        return f"{self.group}/{self.name}"


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
        program.beside = True
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
