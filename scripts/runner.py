#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Runs test programs and counts what their TAP says.

    scripts/runner.py [--list] [--jobs N] [--build DIR] [--root DIR] GROUP[/NAME]...

A program fails for a `not ok`, and also for a missing plan, fewer or more results than planned, a
result out of order, a skip without a reason, a non-zero exit, a signal, a time-out, a process or a
mount that it leaves behind. Up to N programs run at once, as many as there are CPUs when nothing is
said: one that wants the machine for itself, and emulated machines and fuzzers beside it. check calls
this; the groups are in running/programs.py, and how one program is run is in running/execution.py.
"""
import argparse
import os
import signal
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(HERE, "running"))
# pylint: disable=wrong-import-position
from execution import log_of
from lanes import Lanes, default_count
from programs import GROUPS, find
from screen import Screen, print_skips, shorten


def run_all(programs, count, root, build):
    """Run them all and print the closing lines; the exit status."""
    screen = Screen(len(programs))
    passed, failed, skips = 0, 0, []
    with Lanes(programs, count, root, build) as lanes:
        for program, result in lanes.results(screen.begin, screen.tick):
            screen.end(program, result, shorten(log_of(program, build), root))
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
    parser.add_argument("--jobs", type=int, metavar="N", help="how many may run at once")
    parser.add_argument("--root", default=os.path.dirname(HERE))
    parser.add_argument("--build", help="where things were built (ROOT/build)")
    parser.add_argument("wanted", nargs="*", metavar="GROUP[/NAME]")
    args = parser.parse_args()
    if args.jobs is not None and args.jobs < 1:
        parser.error(f"--jobs: {args.jobs}: give 1 or more")
    root = os.path.abspath(args.root)
    build = os.path.abspath(args.build or os.path.join(root, "build"))
    programs = [program for wanted in args.wanted or GROUPS for program in find(root, build, wanted)]
    if args.list:
        for program in programs:
            print(program)
        return 0
    return run_all(programs, args.jobs or default_count(), root, build)


def stop(number, _frame):
    """Leave through the clean-ups, which kill the running programs."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
