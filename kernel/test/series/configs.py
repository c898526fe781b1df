#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
# check-timeout: 900
"""Every variant's configuration holds what its fragments ask for, and a symbol that cannot be had is an
error that names the symbol and the fragment. A new variant belongs into VARIANTS."""
import os
import shutil
import subprocess
import sys

import tap

sys.path.insert(0, os.path.join(os.environ["INFILL_ROOT"], "kernel", "test"))
import pristine
import compiler
import configuration

VARIANTS = [("x86_64", "plain", None), ("x86_64", "debug", None), ("arm64", "plain", None), ("arm64", "debug", None),
            ("arm64", "plain", "16k"), ("arm64", "plain", "64k")]
# What the lab's debug kernels are there for.
FINDERS = ["PROVE_LOCKING", "DEBUG_ATOMIC_SLEEP", "KASAN", "PROVE_RCU", "DETECT_HUNG_TASK", "DEBUG_VM",
           "DEBUG_PREEMPT", "FAULT_INJECTION"]


def holds(arch, kind, pages):
    pristine.kernel("build", "--config", *(["--pages", pages] if pages else []), arch, kind)


for row in VARIANTS:
    tap.add(f"{' '.join(filter(None, row))}: the configuration holds", holds, *row)


@tap.test("the debug kernels have everything that finds errors")
def finders():
    for arch, own in (("x86_64", "KVM_PROVE_MMU"), ("arm64", "NVHE_EL2_DEBUG")):
        final = configuration.read(os.path.join(pristine.ROOT, "build", "kernel", f"{arch}-debug", "config"))
        tap.equal([name for name in FINDERS + [own] if final.get(f"CONFIG_{name}") != "y"], [], f"{arch}: missing")


def fragment(text):
    """A folder of fragments, the real ones and one more line in plain."""
    folder = os.path.join(pristine.TMPDIR, "configs")
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(configuration.CONFIGS):
        with open(os.path.join(REAL, name), encoding="utf-8") as old, \
                open(os.path.join(folder, name), "w", encoding="utf-8") as new:
            new.write(old.read() + (text if name == "plain" else ""))
    return folder


REAL = configuration.CONFIGS


def refused(text, message):
    final = os.path.join(pristine.ROOT, "build", "kernel", "arm64-plain", "config")
    configuration.CONFIGS = fragment(text)
    try:
        configuration.check(configuration.fragments("arm64", "plain", None), final)
    except pristine.source.Failure as error:
        tap.contains(str(error), message, "the message")
    else:
        tap.true(False, f"{text.strip()}: refused")
    finally:
        configuration.CONFIGS = REAL


tap.add("a symbol that cannot be had is named", refused, "CONFIG_KVM_INTEL=y\n",
        "CONFIG_KVM_INTEL: kernel/configs/plain asks for y, the final configuration has n")
tap.add("a symbol that does not exist is named", refused, "CONFIG_NO_SUCH_SYMBOL=y\n", "CONFIG_NO_SUCH_SYMBOL: ")
tap.add("a symbol that cannot be turned off is named", refused, "# CONFIG_KVM is not set\n",
        "CONFIG_KVM: kernel/configs/plain asks for n, the final configuration has y")


@tap.test("Kconfig has the compiler's own answers, not ccache's")
def answers():
    if not shutil.which("ccache"):
        tap.skip("ccache is not installed")
    command = ["gcc", "-Werror", "-D__SIZEOF_INT128__=0", "-c", "-x", "c", "/dev/null", "-o",
               os.path.join(pristine.TMPDIR, "o")]
    env = {**os.environ, **compiler.cache_environment(warnings_matter=False)}
    found = [subprocess.run(how + command, env=env, stderr=subprocess.DEVNULL, check=False).returncode
             for how in ([], [compiler.CACHED_CC])]
    tap.equal(found[1], found[0], "exit status of gcc with a warning")


tap.run()
