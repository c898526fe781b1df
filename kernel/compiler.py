# SPDX-License-Identifier: GPL-2.0
"""One kernel as it is compiled: where its objects are, what make is called with, and how its output
is shown. Change it when an architecture is added, or when the lab needs more of a build.
"""
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections import deque

import configuration
from output import BUILD, LOGS, ROOT, VERBOSE, Failure, Progress, environment, locked, run, show_command, shorten

# Of each architecture: GNU's name, what the machine boots, and the same in the folder of objects.
ARCHES = {
    "x86_64": ("x86_64-linux-gnu-", "bzImage", "arch/x86/boot/bzImage"),
    "arm64": ("aarch64-linux-gnu-", "Image", "arch/arm64/boot/Image"),
}
MACHINES = {"x86_64": "x86_64", "aarch64": "arm64"}
WARNING = re.compile(r"\bwarning: ", re.IGNORECASE)
ERROR = re.compile(r"(?:error|Error \d+|\*\*\*|undefined reference|multiple definition)", re.IGNORECASE)
STEP = re.compile(r"^\s+([A-Z0-9_]+(?: \[M\])?)\s+(\S+)$")
CACHED_CC = os.path.join(ROOT, "kernel", "cached-cc")
# Enough for every variant; ccache throws away what was not used for longest.
CACHE_SIZE = "4G"


def compiler_prefix(arch):
    """CROSS_COMPILE, empty where the machine is of that architecture."""
    return "" if MACHINES.get(platform.machine()) == arch else ARCHES[arch][0]


def cache_environment(warnings_matter):
    """ccache's settings: equal sources in two trees, built in two folders, are compiled once."""
    env = {
        "CCACHE_BASEDIR": BUILD, "CCACHE_NOHASHDIR": "1", "CCACHE_MAXSIZE": CACHE_SIZE,
        # __FILE__ is made relative by it, so the folder in it does not show in the result.
        "CCACHE_IGNOREOPTIONS": "-fmacro-prefix-map=* -ffile-prefix-map=*",
    }
    if not warnings_matter:
        # What it has preprocessed to look it up is compiled, and not preprocessed again: a quarter less
        # time where nothing is known yet. gcc does not see then what came from a macro.
        env["CCACHE_NOCPP2"] = "1"
    if "CCACHE_DIR" not in os.environ:
        env["CCACHE_DIR"] = os.path.join(ROOT, "build", "ccache")
    return env


def read(path):
    with open(path, encoding="ascii") as file:
        return file.read()


class Make:
    """A call of make whose output goes to a log, with a line of progress from it."""

    def __init__(self, log, what):
        self.log, self.what = log, what
        self.errors, self.warnings, self.last, self.compiled = [], [], deque(maxlen=5), 0

    def take(self, line, progress):
        if VERBOSE:
            print(line, flush=True)
        if match := STEP.match(line):
            self.compiled += 1
            progress.note(f"{self.compiled}: {match[1]} {match[2]}")
        elif WARNING.search(line):
            self.warnings.append(line)
        elif ERROR.search(line) and len(self.errors) < 8:
            self.errors.append(line.strip())
        self.last.append(line.strip())

    def run(self, command):
        """Run it and return the warnings that it gave."""
        show_command(command)
        os.makedirs(LOGS, exist_ok=True)
        with open(self.log, "ab") as log, Progress(self.what) as progress:
            log.write((" ".join(command) + "\n").encode())
            # Whatever ends this program, kill -9 too, ends make, and make its compilers.
            process = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *command], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       env={**environment(), **cache_environment("W=1" in command)})
            for raw in process.stdout:
                log.write(raw)
                self.take(raw.decode(errors="replace").rstrip("\n"), progress)
            if process.wait():
                why = "\n    ".join(self.errors or self.last)
                raise Failure(f"{self.what}: failed: the whole output is in {shorten(self.log)}; first:\n    {why}")
        return self.warnings


class Variant:
    """One build: architecture, kind, page size, and a suffix for what is not the series itself."""

    def __init__(self, arch, kind, pages=None, suffix="", folder=None):
        self.arch, self.kind, self.pages = arch, kind, pages
        self.name = f"{arch}-{kind}" + (f"-{pages}" if pages else "") + suffix
        self.path = folder or os.path.join(BUILD, self.name)
        self.objects = os.path.join(self.path, "obj")
        self.log = os.path.join(LOGS, f"kernel-{self.name}.log")
        self.names = configuration.fragments(arch, kind, pages)

    def locked(self):
        """For one program at a time; the log begins anew."""
        os.makedirs(self.objects, exist_ok=True)
        os.makedirs(LOGS, exist_ok=True)
        with open(self.log, "wb"):
            pass
        return locked(os.path.join(self.path, "lock"), shorten(self.path))

    def tools(self):
        """The variables that name the architecture and the compiler."""
        prefix = compiler_prefix(self.arch)
        found = [f"ARCH={self.arch}", f"CROSS_COMPILE={prefix}"]
        for tool in (f"{prefix}gcc", "make", "flex", "bison", "bc"):
            if not shutil.which(tool):
                raise Failure(f"{tool}: not found: run scripts/setup kernel")
        if shutil.which("ccache"):
            found += [f"CC={CACHED_CC} {prefix}gcc"]
        return found

    def make(self, tree, *arguments):
        """The command line of the kernel's make. Dates and names are fixed, so that nothing is
        compiled again because of them."""
        return ["make", "-C", tree, f"O={self.objects}", f"-j{len(os.sched_getaffinity(0))}", *self.tools(),
                "LOCALVERSION=", "KBUILD_BUILD_USER=infill", "KBUILD_BUILD_HOST=lab",
                "KBUILD_BUILD_TIMESTAMP=1970-01-01", *(["V=1"] if VERBOSE else []), *arguments]

    def config_key(self, tree):
        """A hash of all that the configuration follows from: fragments, Kconfig files, compiler."""
        version = run([f"{compiler_prefix(self.arch)}gcc", "--version"]).stdout
        digest = hashlib.sha256(f"{configuration.merged_text(self.names)}{version}{read(CACHED_CC)}".encode())
        for command in (["ls-files", "-s"], ["diff", "--no-ext-diff", "HEAD"]):
            files = ["--", "*Kconfig*", "scripts/kconfig", "scripts/*.sh"]
            digest.update(run(["git", "-C", tree, *command, *files]).stdout.encode())
        return digest.hexdigest()

    def configure(self, tree):
        """Merge the fragments and check the result; nothing when that was done for the same input."""
        merged, config = os.path.join(self.path, "fragments"), os.path.join(self.objects, ".config")
        made = os.path.join(self.path, "configured")
        key = self.config_key(tree)
        if os.path.exists(made) and os.path.exists(config) and read(made) == key:
            return configuration.check(self.names, config)
        with open(merged, "w", encoding="utf-8") as file:
            file.write(configuration.merged_text(self.names))
        Make(self.log, f"configuring {self.name}").run(
            self.make(tree, f"KCONFIG_ALLCONFIG={merged}", "allnoconfig"))
        configuration.check(self.names, config)
        with open(made, "w", encoding="ascii") as file:
            file.write(key)
        self.link("config", ".config")

    def link(self, name, target):
        """A stable name for a file of the build."""
        path = os.path.join(self.path, name)
        wanted = os.path.join("obj", target)
        if not (os.path.islink(path) and os.readlink(path) == wanted):
            if os.path.lexists(path):
                os.unlink(path)
            os.symlink(wanted, path)

    def build_kernel(self, tree, *arguments, what=None):
        """The kernel and its headers for programs; the warnings."""
        _, target, image = ARCHES[self.arch]
        make = Make(self.log, what or f"building {self.name}")
        warnings = make.run(self.make(tree, *arguments, target, "headers"))
        self.link("image", image)
        self.link("vmlinux", "vmlinux")
        return warnings

    def selftests_command(self, tree):
        """The command line of the selftests' make. The .d files name each target as make does, which
        ccache does not see to by itself, or a changed header would not have anything compiled again;
        OUTPUT is relative so that these names are the same in every folder that is built in."""
        source = os.path.realpath(os.path.join(tree, "tools", "testing", "selftests", "kvm"))
        output = os.path.relpath(os.path.realpath(os.path.join(self.path, "selftests")), source)
        return ["make", "-C", source, f"-j{len(os.sched_getaffinity(0))}", *self.tools(),
                f"OUTPUT={output}", "EXTRA_CFLAGS=-MQ '$@'", f"KHDR_INCLUDES=-isystem {self.objects}/usr/include",
                "LDFLAGS=-static -pthread"]

    def build_selftests(self, tree, what=None):
        """KVM's selftests, static, so that an initramfs needs nothing else. They generate headers in
        the source tree, so it is locked."""
        os.makedirs(os.path.join(self.path, "selftests"), exist_ok=True)
        with locked(os.path.join(BUILD, "locks", "selftests"), "the selftests' source"):
            return Make(self.log, what or f"building {self.name}'s selftests").run(
                self.selftests_command(tree))
