#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Restores a real Linux guest in four ways and prints how long its user waits.

usage: demo.py [--json FILE] [--svg FILE] [--runs N] [--accel tcg|kvm] [--cpus N] [--keep]

    --json FILE     write the figures of the table, of each run, and their ratios
    --svg FILE      draw when each page of guest memory arrived
    --runs N        repetitions of each restore (default 5); medians are printed
    --accel NAME    instead of KVM where it runs the guest, and TCG elsewhere
    --cpus N        of the guest (default 1)
    --ways LIST     only these of mapped,naive,untraced,trace
    --keep          keep each run's files in build/guest/run-*

The guest is booted and saved once; its data are checked after each restore, and that the saved
image did not change. What is measured is in restore.py, the guest's work in store.c.
"""
import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import time

import machine
import picture
import restore
import snapshot as snapshots
import vm

CACHES = ("cold", "warm")
TIME_LIMIT = 200
FEWEST_RUNS = 3

# heading, key in a run, unit; a missing figure prints as -
COLUMNS = (
    (("restore", "returned"), "restored_ms", "ms"),
    (("first useful", "work"), "first_work_ms", "ms"),
    (("", "faults"), "faults", ""),
    (("guest", "stall"), "stall_ms", "ms"),
    (("all data", "checked"), "all_checked_ms", "ms"),
    (("fully", "resident"), "resident_ms", "ms"),
    (("image cached", "before"), "cached_mib", "MiB"),
)
NOTES = (
    "Times are from the spawn of the command to the event, seen from outside the guest.",
    "first useful work: a request over 32 of the guest's 128 MiB of data is answered, and right.",
    "faults, guest stall: until then; for (a) QEMU's own minor and major faults, stall unknown.",
    "all data checked: for (c) this includes the wait for its recording window to close.",
    "fully resident: (a) and (b) never are: what the guest did not touch stays on demand.",
)


class Progress:
    """A bar on stderr for a person; nothing where stderr is no terminal."""

    def __init__(self, total):
        self.total = total
        self.done = 0
        self.shown = sys.stderr.isatty()

    def step(self, what):
        """Say what comes next."""
        if self.shown:
            filled = 30 * self.done // self.total
            bar = "#" * filled + "." * (30 - filled)
            sys.stderr.write(f"\r\x1b[K[{bar}] {self.done}/{self.total} {what}")
            sys.stderr.flush()
        self.done += 1

    def clear(self):
        """Leave the line empty."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self.shown = False


def parse_arguments():
    """The options, checked."""
    parser = argparse.ArgumentParser(prog="demo", usage=__doc__.split("\n\n")[1][len("usage: "):],
                                     description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    parser.add_argument("--svg", metavar="FILE", help="draw when each page arrived")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="repetitions (5)")
    parser.add_argument("--accel", choices=("tcg", "kvm"), help="default: KVM where it works")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="of the guest (1)")
    parser.add_argument("--ways", default=",".join(restore.WAYS), metavar="LIST",
                        help="only these of " + ",".join(restore.WAYS))
    parser.add_argument("--keep", action="store_true", help="keep each run's files")
    options = parser.parse_args()
    options.ways = options.ways.split(",")
    for way in options.ways:
        if way not in restore.WAYS:
            parser.error(f"--ways: {way}: unknown, known are {', '.join(restore.WAYS)}")
    if "trace" in options.ways and "untraced" not in options.ways:
        parser.error("--ways: trace needs untraced, which records the trace")
    if not 1 <= options.runs <= 100:
        parser.error(f"--runs: {options.runs}: not from 1 to 100")
    if not 1 <= options.cpus <= 16:
        parser.error(f"--cpus: {options.cpus}: not from 1 to 16")
    if options.svg and not {"untraced", "trace"} <= set(options.ways):
        parser.error("--svg: draws untraced and trace, which --ways leaves out")
    check_folders(parser, options)
    return options


def check_folders(parser, options):
    """What is written goes to a folder that is there."""
    for option in ("json", "svg"):
        path = getattr(options, option)
        if path and not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            parser.error(f"--{option}: {path}: no such directory")


def choose_accel(wanted):
    """KVM only where it was seen to run this guest."""
    if wanted == "tcg":
        return "tcg"
    works, why = vm.probe_kvm()
    if wanted == "kvm" and not works:
        raise vm.Failure(f"--accel kvm: does not run the guest here: {why}")
    return "kvm" if works else "tcg"


def run_all(options, snapshot):
    """All restores, interleaved, so that a change of the machine's load meets all ways alike."""
    runs, started = [], time.monotonic()
    progress = Progress(options.runs * len(CACHES) * len(options.ways))
    with vm.WorkDirectory(options.keep) as work:
        try:
            for number in range(options.runs):
                spent = time.monotonic() - started
                if number >= FEWEST_RUNS and spent * (number + 1) / number > TIME_LIMIT:
                    break
                for cache in CACHES:
                    trace = work.file(f"trace-{number}-{cache}")
                    for way in options.ways:
                        progress.step(f"{restore.WAYS[way].title}, {cache} page cache")
                        runs.append(restore.restore(way, cache, snapshot, trace, options.keep))
            progress.step("comparing the image with what was saved")
            snapshot.check_unchanged(content=True)
        finally:
            progress.clear()
    return runs


def medians(runs):
    """{cache: {way: {figure: median}}} over the numbers that runs have."""
    table = {}
    for cache in CACHES:
        for way in restore.WAYS:
            mine = [run for run in runs if run["way"] == way and run["cache"] == cache]
            if not mine:
                continue
            keys = [key for key, value in mine[0].items() if isinstance(value, (int, float))]
            table.setdefault(cache, {})[way] = {
                key: statistics.median(run[key] for run in mine) for key in keys}
    return table


def ratios(table):
    """Flat: figure_way_vs_way_cache. Below 1 the first way is better."""
    flat = {}
    for cache, ways in table.items():
        for base in ("mapped", "naive"):
            for way, figures in ways.items():
                if way == base or way == "mapped" or base not in ways:
                    continue
                for key, name in (("first_work_ms", "first_work"), ("restored_ms", "restored"),
                                  ("faults", "faults"), ("stall_ms", "stall")):
                    mine, other = figures.get(key), ways[base].get(key)
                    if mine is not None and other:
                        flat[f"{name}_{way}_vs_{base}_{cache}"] = round(mine / other, 4)
    return flat


def cell(value, unit):
    """One figure as printed."""
    if value is None:
        return "-"
    return f"{value:,.0f}".replace(",", " ") + (" " + unit if unit else "")


def format_rows(rows):
    """Align: the first two columns left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [text.ljust(width) if i < 2 else text.rjust(width)
                 for i, (text, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return lines


def format_table(table, ratio):
    """The table, the ratios below it."""
    rows = [["", "page"] + [heading[0] for heading, _, _ in COLUMNS],
            ["", "cache"] + [heading[1] for heading, _, _ in COLUMNS]]
    for cache, ways in table.items():
        rows.append([""] * len(rows[0]))
        for way, figures in ways.items():
            rows.append([restore.WAYS[way].title, cache]
                        + [cell(figures.get(key), unit) for _, key, unit in COLUMNS])
    lines = format_rows(rows)
    if "mapped" not in next(iter(table.values())):
        return lines
    compared = [["First useful work, times that of (a)", ""] + [f"{cache}" for cache in table]]
    for way in next(iter(table.values())):
        if way != "mapped":
            compared.append([restore.WAYS[way].title, ""] + [
                f"{ratio[f'first_work_{way}_vs_mapped_{cache}']:.2f}" for cache in table])
    return lines + [""] + format_rows(compared)


def heading(info, options, count):
    """What was run, on what."""
    disk = info["disk"]
    qemu = info["qemu"].split("version ")[1].split(" ")[0]
    ahead = disk["read_ahead_kib"]
    return [
        f"Restore of a Linux guest: {vm.MEMORY_MIB} MiB, {options.cpus} vCPU, "
        f"QEMU {qemu} ({options.accel}), medians of {count} runs",
        f"on {info['cpu']}, {info['cpus']} CPUs, Linux {info['kernel']}, {disk['file_system']} on "
        f"{disk['device']}" + (f", read-ahead {ahead} KiB" if ahead is not None else ""),
        "",
    ]


def write_results(options, info, runs, table, ratio):
    """The files that were asked for."""
    if options.svg:
        with open(options.svg, "w", encoding="utf-8") as file:
            file.write(picture.draw(runs, "cold", vm.MEMORY_MIB << 20))
    if options.json:
        kept = [{key: value for key, value in run.items() if key != "installed"} for run in runs]
        result = {"machine": info, "guest": {"memory_mib": vm.MEMORY_MIB, "cpus": options.cpus,
                                             "accel": options.accel},
                  "medians": table, "ratios": ratio, "runs": kept}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
            file.write("\n")


def demo(options):
    """Everything, from the guest's build to the table."""
    vm.remove_stale_directories()
    note = Progress(1)
    with contextlib.ExitStack() as stack:
        stack.callback(note.clear)
        note.step("making, booting and saving the guest, once")
        vm.build_guest()
        for way in options.ways:
            restore.need(*restore.WAYS[way].needs)
        options.accel = choose_accel(options.accel)
        snapshot = snapshots.Snapshot(options.accel, options.cpus).ensure()
    info = machine.describe()
    runs = run_all(options, snapshot)
    table = medians(runs)
    ratio = ratios(table)
    count = len(runs) // (len(CACHES) * len(options.ways))
    write_results(options, info, runs, table, ratio)
    print("\n".join(heading(info, options, count) + format_table(table, ratio) + ["", *NOTES]))


def on_term(*_):
    """End as on Ctrl-C: by way of all clean-up."""
    raise KeyboardInterrupt


def run(function, options):
    """Exit 0; 1 on failure, which is any wrong byte too; 130 when interrupted."""
    signal.signal(signal.SIGTERM, on_term)
    try:
        function(options)
    except vm.Failure as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"demo: {error.filename or 'system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(run(demo, parse_arguments()))
