# SPDX-License-Identifier: GPL-2.0
"""The configuration of a kernel: the fragments of kernel/configs that it is merged from, and the
check that everything they ask for came true. Change it when a variant needs other fragments.
"""
import os
import re

from output import HERE, Failure

CONFIGS = os.path.join(HERE, "configs")
LINE = re.compile(r"(?:(?P<set>CONFIG_\w+)=(?P<value>.*)|# (?P<unset>CONFIG_\w+) is not set)$")


def fragments(arch, kind, pages):
    """The names of the fragments, in the order in which they override each other."""
    names = ["plain", arch]
    if kind == "debug":
        names += ["debug", f"debug-{arch}"]
    if pages:
        names.append(f"pages-{pages}")
    return names


def read(path):
    """{symbol: value} of a fragment or a .config, `n` for what is not set."""
    values = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            if match := LINE.match(line.strip()):
                values[match["set"] or match["unset"]] = match["value"] if match["set"] else "n"
    return values


def wanted(names):
    """{symbol: (value, fragment)}, the last fragment that names a symbol deciding."""
    merged = {}
    for name in names:
        for symbol, value in read(os.path.join(CONFIGS, name)).items():
            merged[symbol] = value, name
    return merged


def merged_text(names):
    """The fragments as one file for KCONFIG_ALLCONFIG."""
    return "".join(f"{symbol}={value}\n" if value != "n" else f"# {symbol} is not set\n"
                   for symbol, (value, _) in wanted(names).items())


def check(names, path):
    """Failure that names each symbol that is not as asked for, and the fragment that asked."""
    final = read(path)
    wrong = []
    for symbol, (value, name) in wanted(names).items():
        found = final.get(symbol, "n")
        if found != value:
            wrong.append(f"{symbol}: kernel/configs/{name} asks for {value}, the final configuration has {found}")
    if wrong:
        raise Failure("; ".join(wrong) + ": see what the symbol depends on, in the tree's Kconfig files")
