#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The man pages are well formed and cover every function, subcommand and option.

The sources of truth are lib/libinfill.map and `infill --help`; nothing is listed here.
"""
import glob
import os
import re
import subprocess

import tap

ROOT = os.environ["INFILL_ROOT"]
INFILL = os.path.join(os.environ["INFILL_BUILD"], "infill")
PAGES = sorted(glob.glob(os.path.join(ROOT, "man", "*.[137]")))


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def names(path):
    """The functions that a page's NAME section lists."""
    section = re.search(r'^\.S[Hh] "?NAME"?\n(.*?)(?=^\.S[Hh] )', read(path), re.DOTALL | re.MULTILINE)
    text = re.sub(r"\\-.*|^\.Nd.*", "", section.group(1) if section else "", flags=re.MULTILINE)
    return set(re.findall(r"\binfill_\w+", text))


def functions():
    text = re.sub(r"/\*.*?\*/", "", read(os.path.join(ROOT, "lib", "libinfill.map")), flags=re.DOTALL)
    return set(re.findall(r"\b(infill_\w+);", text))


def rendered(page):
    """The page as text, without overstrikes."""
    text = subprocess.run(["mandoc", "-T", "utf8", os.path.join(ROOT, "man", page)], text=True,
                          stdout=subprocess.PIPE, check=True).stdout
    return re.sub(r".\x08", "", text).replace("\u2010", "-")


def lint(path):
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", path], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    tap.equal(done.stdout, "", "mandoc's complaints")
    tap.equal(done.returncode, 0, "mandoc's exit status")


@tap.test("there are pages in sections 1, 3 and 7")
def sections():
    tap.equal({path[-1] for path in PAGES}, {"1", "3", "7"}, "sections")


@tap.test("every exported function is in the NAME of exactly one page of section 3")
def covered():
    counts = {}
    for path in PAGES:
        if path.endswith(".3"):
            for name in names(path):
                counts[name] = counts.get(name, 0) + 1
    tap.equal(sorted(functions() - set(counts)), [], "functions without a page")
    tap.equal(sorted(set(counts) - functions()), [], "pages of functions that do not exist")
    tap.equal(sorted(name for name, count in counts.items() if count > 1), [], "functions in two pages")


@tap.test("every function of a page is in its SYNOPSIS and described")
def described():
    for path in PAGES:
        if path.endswith(".3"):
            text = read(path)
            for name in names(path):
                tap.true(len(re.findall(rf"\b{name}\b", text)) >= 3, f"{os.path.basename(path)} describes {name}")


def subcommands():
    """The words that start an indented line of `infill --help`."""
    text = subprocess.run([INFILL, "--help"], text=True, capture_output=True, check=True).stdout
    return [name for name in re.findall(r"^\s+([a-z]+) {2,}\S", text, re.MULTILINE)]


@tap.test("every subcommand has a page, or a place in infill(1), with all its options")
def options():
    found = subcommands()
    tap.true(found, "subcommands were found in infill --help")
    for name in found:
        page = f"infill-{name}.1" if os.path.exists(os.path.join(ROOT, "man", f"infill-{name}.1")) else "infill.1"
        done = subprocess.run([INFILL, name, "--help"], text=True, capture_output=True, check=False)
        tap.equal(done.returncode, 0, f"infill {name} --help")
        text = rendered(page)
        tap.contains(text, name, page)
        missing = sorted({option for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", done.stdout)
                          if not re.search(re.escape(option) + r"(?![\w-])", text)} - {"--help"})
        tap.equal(missing, [], f"options of infill {name} that {page} does not have")


for page_path in PAGES:
    tap.add(f"{os.path.basename(page_path)} is well formed", lint, page_path)
tap.run()
