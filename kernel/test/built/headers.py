#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""A selftest is compiled again when a header that it includes has changed, and not otherwise: what
make would do in the folders that the lab's machines were built in."""
import os
import subprocess
import sys

import tap

sys.path.insert(0, os.path.join(os.environ["INFILL_ROOT"], "kernel"))
sys.dont_write_bytecode = True
# pylint: disable=wrong-import-position
import compiler
from output import BUILD

HEADER = "include/kvm_util.h"
OBJECTS = ("lib/kvm_util.o", "set_memory_region_test.o")
TREE = os.path.join(BUILD, "tree")


def compiled(arch, *words):
    """Those of OBJECTS that make would compile."""
    command = compiler.Variant(arch, "plain").selftests_command(TREE)
    text = subprocess.run([*command, "--dry-run", *words], check=True, capture_output=True, text=True).stdout
    return [name for name in OBJECTS
            if any(" -c " in line and line.endswith("/" + name) for line in text.splitlines())]


def check(arch):
    """Nothing as it is, all with a header that make is told is new."""
    for words, expected in (((), []), (("-W", HEADER), list(OBJECTS))):
        tap.equal(compiled(arch, *words), expected, f"what make {' '.join(words)} compiles")


for architecture in compiler.ARCHES:
    tap.add(f"{architecture}: {HEADER}", check, architecture)
tap.run()
