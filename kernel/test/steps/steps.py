#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
# check-timeout: 43200
"""Every step of the series builds with W=1 on both architectures, without a warning that the release
does not give. What a step is built with is in kernel/steps.py."""
import os
import sys

import tap

sys.path.insert(0, os.path.join(os.environ["INFILL_ROOT"], "kernel", "test"))
import pristine
import compiler
import series
import steps

if not series.read_index()[1]:
    tap.skip_all("kernel/patches/series has no step")
for arch in compiler.ARCHES:
    all_steps = steps.Steps(arch)
    for number, name in enumerate(all_steps.names()):
        tap.add(f"{arch}: {number + 1}: {name}", all_steps.check, number)

tap.run()
