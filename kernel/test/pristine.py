# SPDX-License-Identifier: GPL-2.0
"""For the tests of kernel/: the exported series, and small checkouts of the release that it is applied
to. Change WANTED when a test looks at other files of the kernel."""
import os
import subprocess
import sys

ROOT = os.environ["INFILL_ROOT"]
KERNEL = os.path.join(ROOT, "kernel")
TMPDIR = os.environ["TMPDIR"]
sys.path.insert(0, KERNEL)

import series
import source

# checkpatch and its like need the folders that make a kernel tree, and read these.
WANTED = ["/*", "!/*/", "/scripts/", "/LICENSES/", "/include/", "/Documentation/process/", "/Documentation/virt/",
          "/arch/arm64/kvm/", "/arch/arm64/include/", "/arch/x86/kvm/", "/arch/x86/include/", "/virt/",
          "/tools/testing/selftests/kvm/",
          "/tools/docs/", "/tools/lib/python/"]
FOLDERS = ["drivers", "fs", "init", "ipc", "kernel", "lib"]


# Debian's own programs and Python modules, whatever else the PATH has.
SYSTEM = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def run(*command, check=True, **options):
    """Run and return the CompletedProcess with stdout and stderr together."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          errors="replace", **options)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command[:5])}: exit status {done.returncode}: {done.stdout[-2000:]}")
    return done


def kernel(program, *arguments, **options):
    """A program of kernel/."""
    return run(os.path.join(KERNEL, program), *arguments, **options)


def git(tree, *arguments, **options):
    name = ["-c", "user.name=Test", "-c", "user.email=test@localhost.invalid"]
    return run("git", "-C", tree, *name, *arguments, **options).stdout.rstrip("\n")


def touched(filter_=""):
    """The files that the series changes."""
    options = [f"--diff-filter={filter_}"] if filter_ else []
    return source.git("diff", "--name-only", "--no-renames", *options, source.base_commit(),
                      series.series_commit()).splitlines()


def checkout(name, commit):
    """A small working copy of one commit in TMPDIR, its objects shared with source.git."""
    path = os.path.join(TMPDIR, name)
    run("git", "clone", "-q", "--shared", "--no-checkout", "--template=", source.GIT, path)
    patterns = WANTED + ["/" + file for file in touched()]
    os.makedirs(os.path.join(path, ".git", "info"), exist_ok=True)
    run("git", "-C", path, "sparse-checkout", "set", "--no-cone", *patterns)
    run("git", "-C", path, "checkout", "-q", "-B", "test", commit)
    for folder in FOLDERS:
        os.makedirs(os.path.join(path, folder), exist_ok=True)
    return path


def export(name="mails"):
    """The series as mails in TMPDIR; the paths without the cover letter."""
    path = os.path.join(TMPDIR, name)
    kernel("export", path)
    return [os.path.join(path, mail) for mail in sorted(os.listdir(path)) if not mail.startswith("0000-")]
