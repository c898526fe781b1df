#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""What the programs of kernel/ say to a wrong command line, and to --help. A new option belongs into
WRONG; what kernel/tree refuses in a tree is in tree.py."""
import os
import sys

import tap

sys.path.insert(0, os.path.join(os.environ["INFILL_ROOT"], "kernel", "test"))
import pristine

WRONG = [
    ("tree", ["--no-such"], "kernel/tree: unrecognized arguments: --no-such: kernel/tree --help"),
    ("tree", ["one", "two"], "kernel/tree: unrecognized arguments: two: kernel/tree --help"),
    ("tree", ["--save", "--base"], "kernel/tree: --save: goes with neither --base nor --force"),
    ("tree", ["--save", "--force"], "kernel/tree: --save: goes with neither --base nor --force"),
    ("export", [], "kernel/export: DIR: missing"),
    ("export", ["one", "two"], "kernel/export: unrecognized arguments: two"),
    ("build", [], "kernel/build: ARCH: missing"),
    ("build", ["mips"], "kernel/build: mips: unknown architecture: x86_64 and arm64 are known"),
    ("build", ["arm64", "fast"], "kernel/build: fast: unknown kind: plain and debug are known"),
    ("build", ["--pages", "8k", "arm64"], "kernel/build: --pages 8k: unknown page size: 16k and 64k are known"),
    ("build", ["--pages", "16k", "x86_64"], "kernel/build: --pages 16k: x86_64 has 4k pages only"),
    ("build", ["--pages"], "kernel/build: argument --pages: expected one argument"),
    ("build", ["--steps", "arm64", "debug"], "kernel/build: --steps: takes no other option"),
    ("build", ["--steps", "--base", "arm64"], "kernel/build: --steps: takes no other option"),
    ("build", ["arm64", "plain", "more"], "kernel/build: unrecognized arguments: more"),
]


def wrong(program, arguments, message):
    done = pristine.kernel(program, *arguments, check=False)
    tap.equal(done.returncode, 2, "the exit status")
    tap.equal(len(done.stdout.splitlines()), 1, "lines of output")
    tap.contains(done.stdout, message, "the message")


for row in WRONG:
    tap.add(f"{row[0]} {' '.join(row[1])}: refused", wrong, *row)


def helps(program):
    for option in ("--help", "-h"):
        done = pristine.kernel(program, option)
        tap.contains(done.stdout, f"\n    kernel/{program} ", "the usage")


for name in ("tree", "build", "export"):
    tap.add(f"{name} --help", helps, name)

tap.run()
