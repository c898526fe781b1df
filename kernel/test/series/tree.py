#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
# check-timeout: 1800
"""kernel/tree: what it lays out, moves, saves and refuses, with steps of its own in a copy of kernel/.
The tests run in order and share one tree, because a tree is large; add one at the end."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import tap

sys.path.insert(0, os.path.join(os.environ["INFILL_ROOT"], "kernel", "test"))
import pristine
import source
from pristine import git, run

SCRATCH = os.path.join(pristine.TMPDIR, "root")
KERNEL = os.path.join(SCRATCH, "kernel")
BUILD = os.path.join(SCRATCH, "build", "kernel")
TREE = os.path.join(pristine.TMPDIR, "tree")
NUMBERS = "".join(f"{number}\n" for number in range(60))
BASE = source.base_commit()
SIGNED = "\n\nWhy it is so.\n\nSigned-off-by: Test <test@localhost.invalid>"


def copy_root():
    """A copy of what the programs need, with no step; the source's objects are linked, not copied."""
    os.makedirs(BUILD)
    shutil.copytree(pristine.KERNEL, KERNEL, ignore=shutil.ignore_patterns("__pycache__", "files", "patches", "test"))
    os.makedirs(os.path.join(KERNEL, "patches"))
    with open(os.path.join(KERNEL, "patches", "series"), "w", encoding="utf-8") as file:
        file.write("# SPDX-License-Identifier: GPL-2.0\n# series: a comment that stays.\n")
    os.makedirs(os.path.join(SCRATCH, "scripts"))
    shutil.copy(os.path.join(pristine.ROOT, "scripts", "setup"), os.path.join(SCRATCH, "scripts"))
    run("cp", "-al", source.GIT, BUILD)
    # What is written to must not be the original.
    config = os.path.join(BUILD, "source.git", "config")
    shutil.copy(config, config + ".new")
    os.replace(config + ".new", config)


def tree(*arguments, ok=True, **options):
    done = run(os.path.join(KERNEL, "tree"), *arguments, check=False, **options)
    tap.equal(done.returncode, 0 if ok else 1, f"the exit status: {done.stdout}")
    return done.stdout


def path(*names):
    return os.path.join(TREE, *names)


def read(*names):
    with open(os.path.join(*names), encoding="utf-8") as file:
        return file.read()


def write(text, *names):
    os.makedirs(os.path.dirname(path(*names)), exist_ok=True)
    with open(path(*names), "w", encoding="utf-8") as file:
        file.write(text)


def commit(subject):
    git(TREE, "add", "-A")
    git(TREE, "commit", "-q", "-m", subject + SIGNED)


def steps():
    return [line for line in read(KERNEL, "patches", "series").splitlines() if line and not line.startswith("#")]


copy_root()


@tap.test("a killed layout leaves nothing that is taken for a tree")
def killed():
    process = subprocess.Popen([os.path.join(KERNEL, "tree"), TREE], stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not os.path.exists(TREE + ".unfinished/Makefile") and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    tap.true(os.path.isdir(TREE + ".unfinished"), "it was killed under way")
    tap.true(not os.path.exists(TREE), "no tree")


@tap.test("no step: the tree is the release, after a killed layout too")
def empty():
    tree(TREE)
    tap.equal(git(TREE, "rev-parse", "HEAD"), BASE, "the commit")
    tap.equal(git(TREE, "rev-parse", "HEAD^{tree}"), source.BASE["TREE"], "its content")
    tap.equal(git(TREE, "status", "--porcelain"), "", "the state")
    tap.true(not os.path.exists(TREE + ".unfinished"), "nothing is left of the killed one")


@tap.test("git shows new files, which Debian's .gitignore hides")
def new_files():
    write("x\n", "virt", "kvm", "shown.c")
    tap.equal(git(TREE, "status", "--porcelain"), "?? virt/kvm/shown.c", "git status")
    os.unlink(path("virt", "kvm", "shown.c"))


@tap.test("--save: long new files whole, the rest in the patch")
def save():
    write(NUMBERS, "virt", "kvm", "long.c")
    os.chmod(path("virt", "kvm", "long.c"), 0o755)
    write("short\n", "virt", "kvm", "short.h")
    write(read(path("virt", "kvm", "Kconfig")) + "# one\n", "virt", "kvm", "Kconfig")
    commit("KVM: One thing")
    write(NUMBERS + "changed later\n", "virt", "kvm", "long.c")
    commit("KVM: Another thing, with zwölf")
    write(NUMBERS, "virt", "kvm", "only.c")
    commit("KVM: Only a file")
    tree("--save", TREE)
    tap.equal(steps(), ["0001-KVM-One-thing.patch  # KVM: One thing", "\tvirt/kvm/long.c",
                        "0002-KVM-Another-thing-with-zw-lf.patch  # KVM: Another thing, with zwölf",
                        "0003-KVM-Only-a-file.patch  # KVM: Only a file", "\tvirt/kvm/only.c"], "series")
    tap.contains(read(KERNEL, "patches", "series"), "a comment that stays", "series")
    tap.equal(read(KERNEL, "files", "virt", "kvm", "long.c"), NUMBERS, "the file as the step adds it")
    tap.true(os.access(os.path.join(KERNEL, "files", "virt", "kvm", "long.c"), os.X_OK), "its mode")
    first = read(KERNEL, "patches", "0001-KVM-One-thing.patch")
    hunks = re.findall(r"^diff --git a/(\S+)", first, re.MULTILINE)
    tap.equal(hunks, ["virt/kvm/Kconfig", "virt/kvm/short.h"], "the files with a hunk")
    tap.contains(first, "Subject: [PATCH] KVM: One thing\nSPDX-License-Identifier: GPL-2.0\n\nWhy it is", "the mail")
    tap.contains(read(KERNEL, "patches", "0002-KVM-Another-thing-with-zw-lf.patch"), "+changed later", "the later hunk")


@tap.test("the saved steps give the same commits, anywhere")
def same():
    head = git(TREE, "rev-parse", "HEAD")
    run("git", "--git-dir", os.path.join(BUILD, "source.git"), "config", "--unset", "infill.series")
    tree(TREE)
    tap.equal(git(TREE, "rev-parse", "HEAD"), head, "the commit, made again")
    before = read(KERNEL, "patches", "0001-KVM-One-thing.patch")
    tree("--save", TREE)
    tap.equal(git(TREE, "rev-parse", "HEAD"), head, "the commit, saved again")
    tap.equal(read(KERNEL, "patches", "0001-KVM-One-thing.patch"), before, "the patch")
    tap.equal(git(TREE, "log", "-1", "--format=%cn %ce %cI"), git(TREE, "log", "-1", "--format=%an %ae %aI"),
              "the committer")


@tap.test("a sentence that was edited in series is kept")
def sentences():
    series = os.path.join(KERNEL, "patches", "series")
    text = read(series).replace("# KVM: Only a file", "# What it is for.")
    with open(series, "w", encoding="utf-8") as file:
        file.write(text)
    write(NUMBERS + "more\n", "virt", "kvm", "only.c")
    git(TREE, "commit", "-q", "-a", "--amend", "--no-edit")
    tree("--save", TREE)
    tap.equal(steps()[-2:], ["0003-KVM-Only-a-file.patch  # What it is for.", "\tvirt/kvm/only.c"], "series")


@tap.test("moving touches only the files that differ")
def moves():
    untouched, touched = path("virt", "kvm", "kvm_main.c"), path("virt", "kvm", "long.c")
    for name in (untouched, touched):
        os.utime(name, (1, 1))
    git(TREE, "update-index", "-q", "--refresh")
    tree("--base", TREE)
    tap.equal(git(TREE, "rev-parse", "HEAD"), BASE, "the commit")
    tap.true(not os.path.exists(touched), "the step's file is gone")
    tree(TREE)
    tap.equal(os.stat(untouched).st_mtime, 1.0, "the time of a file that no step changes")
    tap.true(os.stat(touched).st_mtime > 1, "a new time of one that a step adds")


@tap.test("a tree with changes of one's own is not moved, until --force")
def guarded():
    write("mine\n", "virt", "kvm", "short.h")
    text = tree("--base", TREE, ok=False)
    tap.contains(text, "changes in 1 file (virt/kvm/short.h) of your own", "the message")
    for option in ("--save", "--force"):
        tap.contains(text, option, "the message")
    tap.equal(read(path("virt", "kvm", "short.h")), "mine\n", "the change")
    commit("Mine")
    mine = git(TREE, "rev-parse", "HEAD")
    tap.contains(tree("--base", TREE, ok=False), "has commits of your own", "the message")
    tree("--base", "--force", TREE)
    tap.equal(git(TREE, "rev-parse", "HEAD"), BASE, "the commit")
    tap.equal(git(TREE, "rev-parse", "refs/infill/forced"), mine, "what keeps the commits")
    tree(TREE)


@tap.test("--save says what is not committed, and refuses merges and half a rebase")
def unsaved():
    write("not committed\n", "virt", "kvm", "short.h")
    tap.contains(tree("--save", TREE), "not committed: virt/kvm/short.h", "the message")
    git(TREE, "checkout", "-q", "--", "virt/kvm/short.h")
    head = git(TREE, "rev-parse", "HEAD")
    merge = git(TREE, "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-p", BASE, "-m", "merge")
    git(TREE, "update-ref", "HEAD", merge)
    tap.contains(tree("--save", TREE, ok=False), "has a merge", "the message")
    git(TREE, "update-ref", "HEAD", head)
    os.mkdir(path(".git", "rebase-merge"))
    tap.contains(tree("--save", TREE, ok=False), "a rebase or merge is under way", "the message")
    os.rmdir(path(".git", "rebase-merge"))


def broken(what, message):
    """Break kernel/patches with WHAT(), see the message, and put everything back."""
    keep = os.path.join(pristine.TMPDIR, "keep")
    for name in ("patches", "files"):
        shutil.copytree(os.path.join(KERNEL, name), os.path.join(keep, name))
    try:
        what()
        tap.contains(tree(TREE, ok=False), message, "the message")
    finally:
        for name in ("patches", "files"):
            shutil.rmtree(os.path.join(KERNEL, name))
        shutil.copytree(keep, KERNEL, dirs_exist_ok=True)
        shutil.rmtree(keep)


def change(name, old, new):
    text = read(KERNEL, "patches", name)
    tap.contains(text, old, name)
    with open(os.path.join(KERNEL, "patches", name), "w", encoding="utf-8") as file:
        file.write(text.replace(old, new))


def misplace():
    """Have series name a file that the release has."""
    change("series", "\tvirt/kvm/only.c", "\tMakefile")
    os.rename(os.path.join(KERNEL, "files", "virt", "kvm", "only.c"), os.path.join(KERNEL, "files", "Makefile"))


FIRST = "0001-KVM-One-thing.patch"
LONG = os.path.join(KERNEL, "files", "virt", "kvm", "long.c")
BROKEN = [
    ("a patch that does not apply", lambda: change(FIRST, "virt/kvm/Kconfig", "virt/kvm/Nconfig"),
     f"kernel/patches/{FIRST}: does not apply"),
    ("a patch without an author", lambda: change(FIRST, "From: ", "Form: "), f"{FIRST}: no Author in its header"),
    ("a patch that series does not name", lambda: change("series", FIRST + "  # KVM: One thing\n\tvirt/kvm/long.c\n", ""),
     "there but not named in patches/series: " + FIRST),
    ("a file that series does not name", lambda: change("series", "\tvirt/kvm/only.c\n", ""),
     "kernel/files: there but not named in patches/series: virt/kvm/only.c"),
    ("a file that is missing", lambda: os.unlink(LONG),
     "kernel/files: named in patches/series but not there: virt/kvm/long.c"),
    ("a file that the release has", misplace, "Makefile is there already"),
    ("a line that means nothing", lambda: change("series", FIRST, "1-" + FIRST), "neither `NNNN-name.patch"),
]
for title, breaking, words in BROKEN:
    tap.add(f"refused: {title}", broken, breaking, words)


@tap.test("refused: a folder that is something else")
def foreign():
    other = os.path.join(pristine.TMPDIR, "foreign")
    os.mkdir(other)
    with open(os.path.join(other, "precious"), "w", encoding="ascii"):
        pass
    tap.contains(tree(other, ok=False), f"kernel/tree: {other}: not empty, and not a tree", "the message")
    tap.contains(tree("--save", other, ok=False), "not a tree that kernel/tree laid out", "the message")
    tap.equal(os.listdir(other), ["precious"], "the folder")


def own_source(value, ok):
    return tree(TREE, ok=ok, env={**os.environ, "LINUX_SRC": value})


@tap.test("LINUX_SRC: another release, no Linux, no file and half a tarball are refused")
def wrong_sources():
    other = os.path.join(pristine.TMPDIR, "linux-other")
    os.mkdir(other)
    tap.contains(own_source(other + "/missing", False), "not found: name a tarball or an unpacked tree", "the message")
    tap.contains(own_source(other, False), f"LINUX_SRC={other}: not a Linux source", "the message")
    with open(os.path.join(other, "Makefile"), "w", encoding="ascii") as file:
        file.write("VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 5\n")
    text = own_source(other, False)
    tap.contains(text, f"expected Linux {source.BASE['RELEASE']}", "the message")
    tap.contains(text, "found Linux 7.3.5", "the message")
    half = os.path.join(pristine.TMPDIR, "half.tar")
    with open(half, "wb") as file:
        file.write(b"no tar" * 1000)
    tap.contains(own_source(half, False), f"kernel/tree: {half}: ", "the message")
    tap.contains(own_source(os.path.join(other, "Makefile"), False), "not a tree and not a .tar", "the message")


@tap.test("LINUX_SRC: a tarball and a tree of the release are taken, one with a change is not")
def right_sources():
    tarball, unpacked = (os.path.join(pristine.TMPDIR, name) for name in ("linux.tar", "linux"))
    run("git", "--git-dir", source.GIT, "archive", "--prefix=linux/", "-o", tarball, BASE)
    shutil.rmtree(os.path.join(BUILD, "source.git"))
    own_source(tarball, True)
    made = run("git", "--git-dir", os.path.join(BUILD, "source.git"), "rev-parse", "base").stdout.strip()
    tap.equal(made, BASE, "the commit from a tarball")
    run("tar", "-C", pristine.TMPDIR, "-xf", tarball)
    os.unlink(tarball)
    own_source(unpacked, True)
    with open(os.path.join(unpacked, "virt", "kvm", "left.o"), "w", encoding="ascii"):
        pass
    os.utime(unpacked)
    tap.contains(own_source(unpacked, False), "it is that release, but", "the message")
    shutil.rmtree(unpacked)


tap.run()
