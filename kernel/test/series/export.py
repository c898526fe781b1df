#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The exported mails apply to the pristine release and give what kernel/tree lays out, and nothing is
left over or missing. Add here what must hold for every mail's form; its style is in style.py."""
import os
import re
import sys

import tap

sys.path.insert(0, os.path.join(os.environ["INFILL_ROOT"], "kernel", "test"))
import pristine
import series
import source

STEPS = series.read_index()[1]
if not STEPS:
    tap.skip_all("kernel/patches/series has no step")
MAILS = pristine.export()


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


@tap.test("a mail for each step, numbered")
def numbered():
    tap.equal(len(MAILS), len(STEPS), "mails")
    for number, path in enumerate(MAILS, 1):
        subject = re.search(r"^Subject: (.*)$", read(path), re.MULTILINE).group(1)
        width = len(str(len(MAILS)))
        tap.true(re.match(rf"\[PATCH {number:0{width}}/{len(MAILS)}\] \S", subject), f"{subject}: its number")


@tap.test("git am applies them to the release, and gives the tree of kernel/tree")
def applies():
    tree = pristine.checkout("applied", source.base_commit())
    pristine.git(tree, "am", "-q", *MAILS)
    expected = source.git("rev-parse", series.series_commit() + "^{tree}")
    tap.equal(pristine.git(tree, "rev-parse", "HEAD^{tree}"), expected, "the content")
    tap.equal(pristine.git(tree, "status", "--porcelain"), "", "files left over")


@tap.test("every step applied by git am is the step of kernel/tree")
def steps_equal():
    base, last = source.base_commit(), series.series_commit()
    tree = os.path.join(pristine.TMPDIR, "applied")
    for want in ("%T", "%s", "%b", "%an <%ae>", "%aI"):
        expected = source.git("log", "--reverse", f"--format={want}", f"{base}..{last}")
        applied = pristine.git(tree, "log", "--reverse", f"--format={want}", f"{base}..HEAD")
        tap.equal(applied, expected, f"git's {want}")


@tap.test("the whole equals kernel/files and the patches")
def files_equal():
    last = series.series_commit()
    changed = "".join(read(step.path) for step in STEPS)
    for step in STEPS:
        for name in step.files:
            if f"diff --git a/{name} b/{name}" in changed:
                continue
            with open(os.path.join(series.FILES, name), encoding="utf-8") as file:
                tap.equal(file.read(), source.git("show", f"{last}:{name}") + "\n",
                          f"kernel/files/{name}, with which the series ends")


@tap.test("every step is signed off by its author, and has a sentence in series")
def signed():
    for step in STEPS:
        text = read(step.path)
        author = re.search(r"^From: (.*)$", text, re.MULTILINE).group(1)
        tap.contains(text.partition("\n---\n")[0], f"\nSigned-off-by: {author}", step.name)
        tap.true(step.comment, f"{step.name}: a sentence in kernel/patches/series")


@tap.test("the cover letter has its title, the base, every step and no comment")
def cover():
    path = os.path.join(os.path.dirname(MAILS[0]), "0000-cover-letter.patch")
    text = read(path)
    tap.true(re.search(r"^Subject: \[PATCH 0+/\d+\] \S", text, re.MULTILINE), "a title")
    for word in (source.BASE["VERSION"], source.BASE["TARBALL_SHA256"], source.BASE["TREE"]):
        tap.contains(text, word, "the base")
    for subject in source.git("log", "--format=%s", f"{source.base_commit()}..{series.series_commit()}").splitlines():
        tap.contains(text, f"\n      {subject}\n", "the list of steps")
    tap.true("<!--" not in text, "no comment of cover.md is in the mail")


@tap.test("the same series gives the same mails")
def same():
    again = pristine.export("again")
    tap.equal([read(path) for path in again], [read(path) for path in MAILS], "the mails")


@tap.test("export refuses a folder with something else in it")
def refuses():
    path = os.path.join(pristine.TMPDIR, "other")
    os.mkdir(path)
    with open(os.path.join(path, "precious"), "w", encoding="ascii"):
        pass
    done = pristine.kernel("export", path, check=False)
    tap.equal(done.returncode, 1, "the exit status")
    tap.contains(done.stdout, f"kernel/export: {path}: holds precious", "the message")
    tap.equal(os.listdir(path), ["precious"], "the folder")


tap.run()
