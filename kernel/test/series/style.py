#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
# check-timeout: 900
"""What the kernel's own tools say of the series: checkpatch --strict of every step, kernel-doc of every
file that is touched, docutils of every touched page. What they say of the release without the series
is not held against it. Add here what a maintainer's scripts look at."""
import collections
import os
import re
import subprocess
import sys

import tap

sys.path.insert(0, os.path.join(os.environ["INFILL_ROOT"], "kernel", "test"))
import pristine
import series
import source

if not series.read_index()[1]:
    tap.skip_all("kernel/patches/series has no step")
MAILS = pristine.export()
OLD = pristine.checkout("old", source.base_commit())
NEW = pristine.checkout("new", series.series_commit())
# Asked for every new file; covered() looks at MAINTAINERS instead.
IGNORED = "FILE_PATH_CHANGES"
# What only Sphinx and the kernel's extensions know; their content is parsed as plain text.
SPHINX_ROLES = ("c:func", "c:type", "c:struct", "c:macro", "c:member", "doc", "ref", "term", "manpage", "kbd", "c:expr")
SPHINX_DIRECTIVES = ("kernel-doc", "toctree", "c:function", "flat-table", "only", "c:namespace", "kernel-include")


def checkpatch(path):
    done = pristine.run("perl", "scripts/checkpatch.pl", "--strict", "--terse", "--show-types", "--no-summary",
                        "--ignore", IGNORED, path, cwd=NEW, env=pristine.SYSTEM, check=False)
    lines = [line.replace(os.path.dirname(path) + "/", "") for line in done.stdout.splitlines() if line.strip()]
    tap.equal(lines, [], "checkpatch --strict")


for mail in MAILS:
    tap.add(f"checkpatch: {os.path.basename(mail)}", checkpatch, mail)


@tap.test("checkpatch finds an error here")
def checkpatch_works():
    """Its silence would mean nothing if it could not run."""
    bad = os.path.join(pristine.TMPDIR, "bad.patch")
    with open(MAILS[0], encoding="utf-8") as file:
        text = file.read()
    with open(bad, "w", encoding="utf-8") as file:
        file.write(re.sub(r"^Signed-off-by:.*\n", "", text, flags=re.MULTILINE))
    done = pristine.run("perl", "scripts/checkpatch.pl", "--strict", "--terse", "--show-types", bad, cwd=NEW,
                        env=pristine.SYSTEM, check=False)
    tap.contains(done.stdout, "MISSING_SIGN_OFF", "what it says of a patch that nobody signed")


@tap.test("MAINTAINERS has somebody for every new file")
def covered():
    with open(os.path.join(NEW, "MAINTAINERS"), encoding="utf-8") as file:
        patterns = re.findall(r"^F:\s+(\S+)", file.read(), re.MULTILINE)
    # The last two sections have everything.
    patterns = [pattern for pattern in patterns if pattern not in ("*", "*/")]

    def matches(pattern, name):
        glob = re.escape(pattern).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
        return re.fullmatch(glob + (".*" if pattern.endswith("/") else ""), name)
    for name in pristine.touched("A"):
        tap.true(any(matches(pattern, name) for pattern in patterns), f"{name}: a section of MAINTAINERS")


def kernel_doc(tree, name):
    """What kernel-doc says of one file, without the line numbers."""
    if not os.path.exists(os.path.join(tree, name)):
        return collections.Counter()
    done = pristine.run("python3", "scripts/kernel-doc", "-none", "-Wall", name, cwd=tree,
                        env=pristine.SYSTEM, check=False)
    said = [re.sub(r":\d+(?=[: ])", "", line) for line in done.stdout.splitlines() if line.strip()]
    return collections.Counter(said)


def kernel_doc_is_clean(name):
    new = kernel_doc(NEW, name) - kernel_doc(OLD, name)
    tap.equal(sorted(new), [], "what kernel-doc says anew")


for touched in pristine.touched("AM"):
    if touched.endswith((".c", ".h")):
        tap.add(f"kernel-doc: {touched}", kernel_doc_is_clean, touched)


@tap.test("kernel-doc finds an error here")
def kernel_doc_works():
    with open(os.path.join(NEW, "bad.c"), "w", encoding="ascii") as file:
        file.write("/**\n * f - no parameter is described\n */\nint f(int a)\n{\n\treturn a;\n}\n")
    tap.contains("\n".join(kernel_doc(NEW, "bad.c")), "parameter 'a' not described", "what it says of such a function")


PARSER = """
import sys
from docutils import core, nodes
from docutils.parsers.rst import Directive, directives, roles
def role(name, raw, text, line, inliner, options=None, content=None):
    return [nodes.literal(raw, text)], []
class Any(Directive):
    has_content, optional_arguments, final_argument_whitespace = True, 100, True
    option_spec = None
    def run(self):
        return []
for name in ROLES:
    roles.register_canonical_role(name, role)
for name in DIRECTIVES:
    directives.register_directive(name, Any)
class Everything(dict):
    def __contains__(self, name): return True
    def __getitem__(self, name): return directives.unchanged
    def __bool__(self): return True
Any.option_spec = Everything()
with open(sys.argv[1], encoding="utf-8") as file:
    core.publish_doctree(file.read(), source_path="page", settings_overrides={
        "report_level": 2, "halt_level": 5, "file_insertion_enabled": False, "raw_enabled": False})
"""


def docutils(path):
    """The complaints of docutils on one page, without line numbers."""
    script = PARSER.replace("ROLES", repr(SPHINX_ROLES)).replace("DIRECTIVES", repr(SPHINX_DIRECTIVES))
    done = subprocess.run(["/usr/bin/python3", "-c", script, path], text=True, check=False,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    tap.equal(done.returncode, 0, f"docutils' exit status: {done.stderr[-500:]}")
    return collections.Counter(re.findall(r"^page:\d+: (\(.*)$", done.stderr, re.MULTILINE))


def page_is_clean(name):
    old = os.path.join(OLD, name)
    before = docutils(old) if os.path.exists(old) else collections.Counter()
    tap.equal(sorted(docutils(os.path.join(NEW, name)) - before), [], "what docutils says anew")


for touched in pristine.touched("AM"):
    if touched.endswith(".rst"):
        tap.add(f"docutils: {touched}", page_is_clean, touched)


@tap.test("docutils finds an error in a table here")
def docutils_works():
    bad = os.path.join(pristine.TMPDIR, "bad.rst")
    with open(bad, "w", encoding="ascii") as file:
        file.write("Title\n=====\n\n======  ===\nEINVAL  this is far\nENOENTIS   over\n======  ===\n")
    tap.true(docutils(bad), "a complaint of a malformed table")


tap.run()
