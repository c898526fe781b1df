# SPDX-License-Identifier: MIT
"""What a machine boots with: the kernel that kernel/build made, and an initramfs made here.

The initramfs has the init, the plan, and the programs of the cases: of the kernel's selftests, or
compiled from .c files of this repository; and in /files what cases ask for by the key `files`.
Everything is static. To have programs compiled in another way change CFLAGS; another thing for
/files is a line in MAKERS, and its name in data.py's FILES.
"""
import glob
import importlib.util
import os
import platform
import subprocess
import tempfile
from importlib.machinery import SourceFileLoader

import data
from vm import Failure

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
OUT = os.path.join(ROOT, "build", "lab")
CFLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
# The compiler of each architecture, and the machine where plain gcc is that.
COMPILERS = {"x86_64": ("x86_64-linux-gnu-gcc", "x86_64"),
             "arm64": ("aarch64-linux-gnu-gcc", "aarch64")}


def load_guest_build():
    """guest/build as a module, for its cpio archive: it is a script without .py."""
    loader = SourceFileLoader("guest_build", os.path.join(ROOT, "guest", "build"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("guest_build", loader))
    loader.exec_module(module)
    return module


GUEST_BUILD = load_guest_build()


class Kernel:
    """A kernel and its selftests, as kernel/build leaves them."""

    def __init__(self, arch, kind="plain", pages=None, base=False):
        self.arch, self.kind, self.pages, self.base = arch, kind, pages, base
        self.name = "-".join(filter(None, [arch, kind, pages, "base" if base else None]))
        self.folder = os.path.join(ROOT, "build", "kernel", self.name)
        self.image = os.path.join(self.folder, "image")
        self.vmlinux = os.path.join(self.folder, "vmlinux")

    def command(self):
        """What builds it."""
        words = ["kernel/build"] + (["--base"] if self.base else [])
        words += ["--pages", self.pages] if self.pages else []
        return " ".join(words + [self.arch, self.kind])

    def require(self):
        """Fail when it was not built, with what to do."""
        if not os.path.exists(self.image):
            raise Failure(f"{os.path.relpath(self.image, ROOT)}: not found: run {self.command()}")

    def selftest(self, name):
        """The path of one of its selftests."""
        return os.path.join(self.folder, "selftests", name)


def compiler(arch):
    """The compiler that makes programs for the architecture."""
    cross, native = COMPILERS[arch]
    return "gcc" if platform.machine() == native else cross


def compile_program(source, arch, beside=()):
    """Compile a source of this repository, and others into the same program, where one of them or a
    header beside them is newer than that; the program's path."""
    sources = [os.path.join(ROOT, name) for name in (source, *beside)]
    name = os.path.splitext(source)[0].replace("/", "-")
    target = os.path.join(OUT, "programs", arch, name)
    headers = glob.glob(os.path.join(os.path.dirname(sources[0]), "*.h"))
    if GUEST_BUILD.is_newer(target, [*sources, *headers, __file__]):
        return target
    os.makedirs(os.path.dirname(target), exist_ok=True)
    # A name of its own: two runs may compile it at once.
    handle, new = tempfile.mkstemp(prefix=name + ".", dir=os.path.dirname(target))
    os.close(handle)
    try:
        GUEST_BUILD.run([compiler(arch), *CFLAGS, "-o", new, *sources])
        os.chmod(new, 0o755)
        os.replace(new, target)
    except GUEST_BUILD.Failure as failure:
        raise Failure(str(failure)) from None
    finally:
        if os.path.exists(new):
            os.unlink(new)
    return target


def program(case, kernel):
    """The path of a case's program on this host."""
    if case.own:
        return compile_program(case.program, kernel.arch, case.beside)
    return kernel.selftest(case.program)


def stripped(path, arch):
    """A program's bytes without debug information, which is most of a selftest's size."""
    tool = compiler(arch).replace("gcc", "objcopy")
    with tempfile.TemporaryDirectory(dir=OUT, prefix="strip-") as folder:
        target = os.path.join(folder, "program")
        try:
            subprocess.run([tool, "--strip-debug", path, target], check=True, capture_output=True)
            path = target
        except (OSError, subprocess.CalledProcessError):
            # Its size is all that is lost.
            pass
        with open(path, "rb") as file:
            return file.read()


def made_by(*command):
    """What a script of this repository prints, which is the path of what it made."""
    done = subprocess.run([os.path.join(ROOT, command[0]), *command[1:]], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(done.stderr.strip() or f"{' '.join(command)}: exit {done.returncode}")
    return done.stdout.strip()


def guest(part, name):
    """A maker of one part of the guest that runs inside the machine's guest."""
    def make(arch):
        made_by("guest/build", "--arch", arch, part)
        return GUEST_BUILD.Target(arch).path(name)
    return make


# What makes each of data.FILES for an architecture, and returns its path.
MAKERS = {
    "infill": lambda arch: made_by("lab/static", arch, "infill"),
    "infill-vmm": lambda arch: made_by("lab/static", arch, "infill-vmm"),
    "engine": lambda arch: made_by("lab/static", arch, "test/lab/engine"),
    "vmlinuz": guest("kernel", "vmlinuz"),
    "vmlinux": guest("vmlinux", "vmlinux"),
    "initrd": guest("initrd", "initrd"),
}


def busybox(arch):
    """A static busybox for the shell, which the script of that name fetches."""
    return made_by("lab/busybox", arch)


def folders_of(files):
    """Every folder above the files, parents first."""
    found = set()
    for name in files:
        while name := os.path.dirname(name):
            found.add(name)
    return sorted(found)


def archive(files):
    """A cpio archive of {name: bytes}, all executable, with the console that a kernel opens first."""
    entry = GUEST_BUILD.cpio_entry
    parts = [entry(name, 0o040755, inode=number)
             for number, name in enumerate(["dev", *folders_of(files)], 1)]
    count = len(parts) + 1
    parts.append(entry("dev/console", 0o020600, rdev=(5, 1), inode=count))
    for number, (name, content) in enumerate(files.items(), count + 1):
        parts.append(entry(name, 0o100755, content, inode=number))
    return b"".join(parts + [entry("TRAILER!!!", 0)])


class Maker:
    """Makes the archives of one machine; the programs are read once."""

    def __init__(self, kernel, programs_of, cases):
        self.kernel = kernel
        self.programs_of = programs_of
        init = compile_program("lab/init.c", kernel.arch)
        self.programs = {"init": self.content(init)}
        for case in cases:
            if not case.made:
                self.programs.setdefault(case.guest_path[1:], self.content(program(case, programs_of)))
        for name in sorted({name for case in cases for name in case.files}):
            # As it is: a kernel's image looks like a program, and must not be stripped.
            with open(MAKERS[name](kernel.arch), "rb") as file:
                self.programs["files/" + name] = file.read()

    def content(self, path):
        """A program's bytes."""
        return stripped(path, self.kernel.arch)

    def write(self, path, plan, shell=False):
        """Write an archive with a plan."""
        files = dict(self.programs)
        files["lab/plan"] = plan.encode()
        if shell:
            with open(busybox(self.kernel.arch), "rb") as file:
                files["bin/busybox"] = file.read()
        GUEST_BUILD.replace(path, archive(files))


def missing_program(case, programs_of):
    """Why the case's program is not there; None if it is."""
    if case.own or case.made or os.path.exists(program(case, programs_of)):
        return None
    return f"{case.program} is not among the selftests of {programs_of.name}"


def plan(cases, kind):
    """The machine's plan for the cases."""
    return "".join(case.plan(case.timeout * data.KIND_FACTOR[kind]) for case in cases)
