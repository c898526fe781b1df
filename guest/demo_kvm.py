#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Restores a real Linux guest on KVM in emulated hosts, its memory a memfd or a guest_memfd.

usage: ./demo --kvm [--json FILE] [--svg FILE] [--machines LIST] [--runs N]

    --json FILE      write the figures of the table, of each run, and their ratios
    --svg FILE       draw how long each way of restoring takes
    --machines LIST  only these of arm64-vhe,x86-npt
    --runs N         repetitions of each restore (default 1); medians are printed

Each emulated host boots a kernel with the project's series, and in it infill-vmm boots the guest,
saves it, and restores it in several ways. The guest answers a request and checks all of its data
after each; a wrong byte fails the demonstration. What is measured is in bench/vm_figures.py, which
bench/vm prints more of.
"""
import argparse
import json
import os
import sys

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "bench")]
# pylint: disable=wrong-import-position
import machine
import picture
import vm_figures
from demo import cell, check_folders, format_rows, run

# What an emulated machine is called in the table.
HOSTS = {"arm64-vhe": "arm64 (VHE)", "x86-npt": "x86-64 (AMD, nested paging)"}
# Of vm_figures.WAYS: title, memory. The others are measured only to compare with.
WAYS = {
    "eager-memfd": ("(a) all of it is read first", "memfd"),
    "mmap-memfd": ("(b) the image is mapped", "memfd"),
    "uffd-memfd": ("(c) userfaultfd", "memfd"),
    "userfault-memfd": ("(d) KVM Userfault", "memfd"),
    "eager-guest_memfd": ("(e) all of it is read first", "guest_memfd"),
    "userfault-guest_memfd": ("(f) KVM Userfault", "guest_memfd"),
    "userfault-guest_memfd-trace-prefault": ("(g) the same, trace and prefault", "guest_memfd"),
}
BASES = tuple(vm_figures.BASES.values())
MILLION = 1e6
# heading, figure, what it is divided by
COLUMNS = (
    (("until the", "guest runs"), "start", MILLION),
    (("first useful", "work"), "work", MILLION),
    (("all data", "checked"), "checked", MILLION),
    (("stage-2", "faults"), "faults_checked", 1),
    (("stall,", "a page"), "stall_page_work", 1),
)
NOTES = (
    "Millions of instructions of the emulated host, guest included; stall: instructions.",
    "until the guest runs: from the VMM's start to the first KVM_RUN; the next two are from there.",
    "first useful work: a request over 32 of the guest's 128 MiB of data is answered, and right.",
    "stall, a page: what the guest waits for a page of those 32 MiB that it touches first.",
    "The data of every restore were checked and are what was saved.",
)


def parse_arguments():
    """The options, checked."""
    parser = argparse.ArgumentParser(prog="demo --kvm", usage=__doc__.split("\n\n")[1][len("usage: "):],
                                     description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--svg", metavar="FILE", help="draw how long each way takes")
    parser.add_argument("--machines", default=",".join(HOSTS), metavar="LIST",
                        help="only these of " + ",".join(HOSTS))
    parser.add_argument("--runs", type=int, default=1, metavar="N", help="repetitions (1)")
    parser.add_argument("--parse", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.machines = options.machines.split(",")
    for name in options.machines:
        if name not in HOSTS:
            parser.error(f"--machines: {name}: unknown, known are {', '.join(HOSTS)}")
    if not 1 <= options.runs <= 100:
        parser.error(f"--runs: {options.runs}: not from 1 to 100")
    check_folders(parser, options)
    return options


def format_table(figures):
    """The rows of one host."""
    rows = [["", ""] + [heading[0] for heading, _, _ in COLUMNS],
            ["", "memory"] + [heading[1] for heading, _, _ in COLUMNS]]
    for way, (title, memory) in WAYS.items():
        values = [(figures[way].get(name), unit) for _, name, unit in COLUMNS]
        rows.append([title, memory] + [cell(None if value is None else value / unit, "")
                                       for value, unit in values])
    return format_rows(rows)


def bars(figures):
    """What picture.py draws of one host."""
    return [(f"{title}, {memory}", "userfault" in way, figures[way]["start"] / MILLION,
             (figures[way]["start"] + figures[way]["work"]) / MILLION)
            for way, (title, memory) in WAYS.items()]


def write_results(options, info, rounds, tables, flat):
    """The files that were asked for."""
    if options.svg:
        with open(options.svg, "w", encoding="utf-8") as file:
            file.write(picture.draw_hosts({HOSTS[name]: bars(figures) for name, figures in tables.items()}))
    if options.json:
        result = {"machine": info, "unit": "instructions", "medians": tables, "ratios": flat, "runs": rounds}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


def demo(options):
    """Measure on each host, and print."""
    rounds, tables, flat = {}, {}, {}
    for name in options.machines:
        rounds[name] = vm_figures.measure(name, options.runs, [*WAYS, *BASES])
        tables[name] = vm_figures.medians(rounds[name])
        flat.update({f"{ratio}_{name.partition('-')[0]}": value
                     for ratio, value in vm_figures.ratios(tables[name]).items()})
    # What is described has been made by now.
    write_results(options, machine.describe(), rounds, tables, flat)
    for name, figures in tables.items():
        print(f"Restore of a Linux guest on KVM, on an emulated {HOSTS[name]} host: 256 MiB, 1 vCPU\n")
        print("\n".join(format_table(figures)) + "\n")
    print("\n".join(NOTES))


def main():
    """The exit status."""
    options = parse_arguments()
    return 0 if options.parse else run(demo, options)


if __name__ == "__main__":
    sys.exit(main())
