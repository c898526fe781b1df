# SPDX-License-Identifier: GPL-2.0
"""A tree that kernel/tree laid out: a git repository of its own with the base or the series checked
out, and refs/infill/laid-out at the commit that was laid out. Change it when trees are to be moved
or guarded otherwise.
"""
import hashlib
import os
import shutil

import source
from output import BUILD, Failure, Progress, locked, run, shorten

LAID_OUT = "refs/infill/laid-out"


class Tree:
    """One tree; nothing of it need be there yet."""

    def __init__(self, path):
        self.path = os.path.abspath(path)

    def locked(self, shared=False):
        """Held by who moves the tree, and shared by who compiles it."""
        name = hashlib.sha256(self.path.encode()).hexdigest()[:16]
        return locked(os.path.join(BUILD, "locks", name), shorten(self.path), shared)

    def git(self, *arguments, text=True, **options):
        done = run(["git", "-C", self.path, *arguments], text=text, **options)
        return done.stdout.rstrip("\n") if text else done.stdout

    def exists(self):
        return os.path.isdir(os.path.join(self.path, ".git")) and bool(self.ref(LAID_OUT))

    def ref(self, name):
        """The commit that a ref names, empty when there is none."""
        return run(["git", "-C", self.path, "rev-parse", "--verify", "-q", name], check=False).stdout.strip()

    def head(self):
        return self.ref("HEAD")

    def changes(self):
        """The tracked files that differ from HEAD, as git status prints them."""
        run(["git", "-C", self.path, "update-index", "-q", "--refresh"], check=False)
        return self.git("diff-index", "--name-status", "HEAD").splitlines()

    def own(self):
        """What a person did in it, in words; empty when it is as it was laid out."""
        words = []
        if self.head() != self.ref(LAID_OUT):
            words.append("commits")
        if changes := self.changes():
            words.append(f"changes in {len(changes)} file{'s' * (len(changes) > 1)} ({changes[0].split(chr(9))[1]})")
        return " and ".join(words)

    # ---- laying out ------------------------------------------------------

    def check_new(self):
        """Refuse a folder that is something else."""
        if os.path.lexists(self.path) and not (os.path.isdir(self.path) and not os.listdir(self.path)):
            raise Failure(f"{self.path}: not empty, and not a tree that kernel/tree laid out: name another folder")

    def create(self, commit, branch):
        """Clone beside the final place, so that an interrupted one is never taken for a tree."""
        self.check_new()
        unfinished = self.path + ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with Progress(f"laying out {shorten(self.path)}"):
            run(["git", "clone", "-q", "--no-checkout", "--template=", source.GIT, unfinished])
            new = Tree(unfinished)
            new.git("remote", "remove", "origin")
            new.fetch(commit)
            new.git("checkout", "-q", "-B", branch, commit)
            new.show_new_files()
            new.git("update-ref", LAID_OUT, commit)
        if os.path.isdir(self.path):
            os.rmdir(self.path)
        os.rename(unfinished, self.path)

    def show_new_files(self):
        """Debian's .gitignore ends with a rule that ignores everything, so that `git add` would pass over
        a new file: leave it out of the checked-out copy, and have git not look at that copy."""
        path = os.path.join(self.path, ".gitignore")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        kept = text.partition("\n#\n# Debian packaging:")[0]
        if kept != text:
            self.git("update-index", "--skip-worktree", ".gitignore")
            with open(path, "w", encoding="utf-8") as file:
                file.write(kept + "\n")

    def fetch(self, commit):
        """Get a commit's objects from source.git."""
        if run(["git", "-C", self.path, "cat-file", "-e", f"{commit}^{{tree}}"], check=False).returncode:
            self.git("fetch", "-q", "--no-tags", source.GIT, commit)

    def move(self, commit, force):
        """Check out another commit, touching only files that differ."""
        own = self.own()
        if own and self.head() == commit and own == "commits":
            own = ""
        if own and not force:
            raise Failure(f"{self.path}: has {own} of your own: keep them with `kernel/tree --save`, or throw them "
                          "away with --force")
        self.fetch(commit)
        if own:
            self.git("update-ref", "refs/infill/forced", self.head())
            self.git("reset", "-q", "--hard", commit)
        elif self.head() != commit:
            self.git("reset", "-q", "--keep", commit)
        self.git("update-ref", LAID_OUT, commit)

    def lay_out(self, commit, branch, force=False):
        """Make the tree, or move it; True when one that was there was moved."""
        if self.exists() and self.head() == commit and not self.own():
            self.show_new_files()
            return False
        with self.locked():
            return self.lay_out_alone(commit, branch, force)

    def lay_out_alone(self, commit, branch, force):
        """The part of lay_out() that nobody else may do at the same time."""
        if not self.exists():
            self.create(commit, branch)
            return False
        self.check_idle()
        self.show_new_files()
        before = self.head()
        self.move(commit, force)
        return before != commit

    def check_idle(self):
        """Refuse a tree in the middle of a rebase or a git am."""
        for name in ("rebase-merge", "rebase-apply", "MERGE_HEAD", "CHERRY_PICK_HEAD"):
            if os.path.exists(os.path.join(self.path, ".git", name)):
                raise Failure(f"{self.path}: a rebase or merge is under way: finish it first")

    def commits(self):
        """The commits above the base, oldest first; Failure when they are no plain line."""
        base = source.git("rev-parse", source.BRANCH)
        if run(["git", "-C", self.path, "merge-base", "--is-ancestor", base, "HEAD"], check=False).returncode:
            raise Failure(f"{self.path}: its commits are not on the base commit {base[:12]}: rebase them onto it")
        if merges := self.git("rev-list", "--merges", f"{base}..HEAD"):
            raise Failure(f"{self.path}: has a merge ({merges[:12]}): a series has none")
        return self.git("rev-list", "--reverse", f"{base}..HEAD").split()
