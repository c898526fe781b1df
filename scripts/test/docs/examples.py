#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The README's examples are what examples/ has between its marks, word by word.

A block of the README between <!-- NAME.c --> and <!-- /NAME.c --> is the part of examples/NAME.c
between two comments that say where README.md begins and ends. Every file there has one.
"""
import glob
import os
import re
import textwrap

import tap

ROOT = os.environ["INFILL_ROOT"]
BLOCK = re.compile(r"^<!-- (\w+\.c) -->\n```c\n(.*?)^```\n<!-- /\1 -->\n", re.DOTALL | re.MULTILINE)
PART = re.compile(r"^\s*/\* README\.md begins here \*/\n(.*?)^\s*/\* README\.md ends here \*/\n",
                  re.DOTALL | re.MULTILINE)


def read(*names):
    with open(os.path.join(ROOT, *names), encoding="utf-8") as file:
        return file.read()


BLOCKS = BLOCK.findall(read("README.md"))
EXAMPLES = sorted(os.path.basename(path) for path in glob.glob(os.path.join(ROOT, "examples", "*.c")))


@tap.test("the README has a block of every example, once")
def complete():
    tap.true(EXAMPLES, "there are examples")
    tap.equal(sorted(name for name, _ in BLOCKS), EXAMPLES, "blocks")


def same(name):
    """The README's block is the marked part."""
    parts = PART.findall(read("examples", name))
    tap.equal(len(parts), 1, f"marked parts of examples/{name}")
    tap.equal([text for block, text in BLOCKS if block == name], [textwrap.dedent(parts[0])],
              f"the README's block, and the part of examples/{name}")


for example in EXAMPLES:
    tap.add(f"the README shows {example} as it is", same, example)

tap.run()
