# SPDX-License-Identifier: GPL-2.0
"""Builds every step of the series, one after the other, with W=1, in a tree and folders of its own:
build/kernel/steps. What the compiler says of the release itself is kept there, and not held against a
step. Change it when a step has to be built otherwise.
"""
import hashlib
import os
import re
import shutil

import compiler
import series
import source
from output import BUILD, LOGS, Failure, locked, say
from worktree import Tree

FOLDER = os.path.join(BUILD, "steps")
# Steps that change these change what the selftests are built from.
SELFTESTS = ("tools/", "include/uapi/", "arch/arm64/include/uapi/", "arch/x86/include/uapi/")


def normalize(line):
    """A warning without the numbers of lines and columns, which move."""
    return re.sub(r":\d+(?=[: ])", "", line.strip())


class Steps:
    """The steps of the series on one architecture."""

    def __init__(self, arch):
        self.arch = arch
        self.base, self.last = source.base_commit(), series.series_commit()
        self.commits = source.git("rev-list", "--reverse", f"{self.base}..{self.last}").split()
        self.tree = Tree(os.path.join(FOLDER, "tree"))
        self.variant = compiler.Variant(arch, "plain", suffix="-steps", folder=os.path.join(FOLDER, arch))

    def subject(self, commit):
        return source.git("log", "-1", "--format=%s", commit)

    def names(self):
        """The subjects, in order."""
        return [self.subject(commit) for commit in self.commits]

    # ---- what is known from before -----------------------------------

    def remember(self, name, text):
        os.makedirs(self.variant.path, exist_ok=True)
        path = os.path.join(self.variant.path, name)
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(path + ".new", path)

    def recall(self, name):
        try:
            with open(os.path.join(self.variant.path, name), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def known(self):
        """The warnings of the release."""
        return set(self.recall("warnings").splitlines())

    def key(self, commit):
        """What a step's verdict follows from: the content, the step's parent, and the release's build."""
        trees = source.git("rev-parse", f"{commit}^{{tree}}", f"{commit}^^{{tree}}")
        return hashlib.sha256((trees + self.release_key()).encode()).hexdigest()

    def release_key(self):
        fragments = compiler.configuration.merged_text(self.variant.names)
        version = compiler.run([f"{compiler.compiler_prefix(self.arch)}gcc", "--version"]).stdout
        return hashlib.sha256((self.base + fragments + version).encode()).hexdigest()

    # ---- building ----------------------------------------------------

    def touches_selftests(self, commit):
        if commit == self.base:
            return True
        changed = source.git("diff", "--name-only", f"{commit}^", commit).splitlines()
        return any(name.startswith(SELFTESTS) for name in changed)

    def make(self, commit, what):
        """Check a commit out and build it; what was said, as warnings."""
        self.tree.lay_out(commit, "steps", force=True)
        self.variant.configure(self.tree.path)
        found = self.variant.build_kernel(self.tree.path, "W=1", what=f"{self.arch}: {what}")
        if self.touches_selftests(commit):
            found += self.variant.build_selftests(self.tree.path, what=f"{self.arch}: {what}: selftests")
        self.remember("built", commit)
        return {normalize(line) for line in found}

    def build_release(self):
        """Build the release once in full, and keep its warnings; afterwards only go back to it."""
        if self.recall("release") != self.release_key():
            for folder in (self.variant.objects, os.path.join(self.variant.path, "selftests")):
                shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(self.variant.objects)
            self.remember("warnings", "")
        said = self.make(self.base, f"Linux {source.BASE['RELEASE']}")
        self.remember("warnings", "".join(sorted(line + "\n" for line in self.known() | said)))
        self.remember("release", self.release_key())

    def check(self, number):
        """Build one step; Failure when it does not build or has a warning of its own."""
        commit = self.commits[number]
        key = self.key(commit)
        if key in self.recall("passed").split():
            return
        with locked(os.path.join(BUILD, "locks", "steps"), "the steps' tree"), self.variant.locked():
            self.variant.log = os.path.join(LOGS, f"kernel-{self.variant.name}-{number + 1:02}.log")
            if self.recall("release") != self.release_key():
                self.build_release()
            # The parent first, so that what is compiled after it is the step's.
            if self.recall("built") != self.parent(number):
                self.make(self.parent(number), f"before step {number + 1}")
            new = self.make(commit, f"step {number + 1} of {len(self.commits)}") - self.known()
        if new:
            raise Failure(f"{self.arch}: step {number + 1}, {self.subject(commit)}: new warnings: "
                          + "; ".join(sorted(new)))
        self.remember("passed", self.recall("passed") + key + "\n")

    def parent(self, number):
        return self.commits[number - 1] if number else self.base


def build(arch):
    """All steps; the first one that fails ends it."""
    steps = Steps(arch)
    for number in range(len(steps.commits)):
        steps.check(number)
    say(f"{arch}: {len(steps.commits)} steps build, none with a new warning")
