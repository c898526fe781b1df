#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The header, the version map and the shared library name the same functions, and nothing else.

Change this only when a symbol gets a new version node.
"""
import os
import re
import subprocess

import tap

ROOT = os.environ["INFILL_ROOT"]
BUILD = os.environ["INFILL_BUILD"]
HEADER = os.path.join(ROOT, "lib", "include", "infill.h")
LIBRARY = os.path.join(BUILD, "libinfill.so")


def output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def declared():
    """The functions that infill.h declares."""
    text = output("gcc", "-E", "-P", "-I", os.path.dirname(HEADER), HEADER)
    text = re.sub(r"\btypedef\b[^;{]*;", "", text)
    return set(re.findall(r"\b(infill_\w+)\s*\(", text))


def mapped():
    """The symbols of the version map, and whether it keeps the rest local."""
    with open(os.path.join(ROOT, "lib", "libinfill.map"), encoding="utf-8") as file:
        text = re.sub(r"/\*.*?\*/", "", file.read(), flags=re.DOTALL)
    return set(re.findall(r"\b(infill_\w+);", text)), "local:" in text and "*;" in text


def exported():
    """name: version of what the shared library defines."""
    symbols = {}
    for line in output("readelf", "--dyn-syms", "--wide", LIBRARY).splitlines():
        word = line.split()
        if len(word) >= 8 and word[0].rstrip(":").isdigit() and word[6] not in ("UND", "ABS"):
            name, _, version = word[7].partition("@")
            symbols[name] = version.lstrip("@")
    return symbols


def same(a, what_a, b, what_b):
    tap.equal(sorted(a - b), [], f"in {what_a} and not in {what_b}")
    tap.equal(sorted(b - a), [], f"in {what_b} and not in {what_a}")


@tap.test("the header declares what the map exports")
def header_and_map():
    tap.true(declared(), "functions were found in the header")
    same(declared(), "infill.h", mapped()[0], "libinfill.map")


@tap.test("the library defines what the map exports, each with a version")
def map_and_library():
    symbols = exported()
    same(mapped()[0], "libinfill.map", set(symbols), "libinfill.so")
    tap.equal(sorted(name for name, version in symbols.items() if not version.startswith("INFILL_")), [],
              "symbols without a version")


@tap.test("the map keeps everything else local")
def local():
    tap.true(mapped()[1], "libinfill.map ends with local: *;")


@tap.test("the library's name carries the version's first number")
def soname():
    with open(HEADER, encoding="utf-8") as file:
        version = re.search(r'define INFILL_VERSION "(\d+)\.\d+\.\d+"', file.read())
    tap.true(version, "INFILL_VERSION is in the header")
    tap.contains(output("readelf", "-d", LIBRARY), f"[libinfill.so.{version.group(1)}]", "the soname")


@tap.test("the shim shows a VMM only the functions that it stands in for")
def shim():
    text = output("nm", "-D", "--defined-only", os.path.join(BUILD, "libinfill-attach.so"))
    names = {line.split()[-1].partition("@")[0] for line in text.splitlines()}
    tap.true(names, "the shim stands in for something")
    tap.equal(sorted(name for name in names if name.startswith("infill_")), [], "the library's functions in the shim")
    libc = {line.split()[-1].partition("@")[0]
            for line in output("nm", "-D", "--defined-only", libc_path()).splitlines()}
    tap.equal(sorted(names - libc), [], "symbols that the C library does not have")


def libc_path():
    return re.search(r"\S*/libc\.so\.6", output("ldd", LIBRARY)).group(0)


tap.run()
