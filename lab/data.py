# SPDX-License-Identifier: MIT
"""Machines and cases: reads the files of machines/ and cases/, and nothing else knows their form.

A file has `key = value` lines; a line that begins with a blank goes on with the value before it; #
begins a comment line. docs/lab.md lists the keys: to add one add it to MACHINE_KEYS or CASE_KEYS
below, and there. A key that ends with a blank takes a name of its own, as in `skip NAME = why`, and
may be given several times.
"""
import fnmatch
import os
import re
import shlex

HERE = os.path.dirname(os.path.abspath(__file__))
ARCHES = ("x86_64", "arm64")
GROUPS = ("new", "upstream", "bench", "soak", "self")
KINDS = ("plain", "debug")
# What `files` may name; initrd.py knows how each is made.
FILES = ("infill", "infill-vmm", "engine", "vmlinuz", "vmlinux", "initrd")
THREADS = ("single", "multi")
# How much longer a case takes in a debug kernel.
KIND_FACTOR = {"plain": 1, "debug": 8}

PAGES = ("16k", "64k")

# Keys, and whether they must be there.
MACHINE_KEYS = {"about": True, "arch": True, "qemu": True, "qemu ": False, "console": True, "cpus": True,
                "threads": True, "memory": True, "boot": False, "says ": True, "skip ": False, "allow ": False}
CASE_KEYS = {"about": True, "program": True, "arguments": False, "files": False, "group": True, "timeout": True,
             "arch": False, "only": False, "boot": False, "memory": False, "cpus ": False, "thp": False,
             "hugepages-": False, "sysctl ": False, "write ": False}
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
SIZES = {"k": 1, "m": 1024, "g": 1024 * 1024}


class Wrong(Exception):
    """Carries `file: what: why` of a file that is not as it must be, or a name that is unknown."""


def lines_of(path):
    """The (number, text) of each line, continued lines joined and comments left out."""
    joined = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if text.startswith("#") or not text:
                continue
            if line[0] in " \t" and joined:
                joined[-1] = (joined[-1][0], joined[-1][1] + " " + text)
            else:
                joined.append((number, text))
    return joined


def split_key(key, keys):
    """The entry of @keys that @key is, and the name that follows it; None when there is none."""
    for entry in keys:
        named = entry[-1] in " -"
        if key == entry and not named:
            return entry, ""
        if named and key.startswith(entry) and key != entry:
            return entry, key[len(entry):].strip()
    return None


def read(path, keys):
    """The file as {key: value}; for a key with names as {key: {name: value}}."""
    values = {key: {} for key in keys if key[-1] in " -"}
    for number, text in lines_of(path):
        # A key may hold a = of its own, as some regular expressions do: blanks around it divide.
        key, divider, value = text.partition(" = ")
        found = split_key(key.strip(), keys)
        if not divider or not found:
            known = ", ".join(entry.strip() for entry in keys)
            raise Wrong(f"{path}:{number}: {key.strip()}: not a known key with a value: known are {known}")
        entry, name = found
        place = values[entry] if name else values
        if (name or entry) in place:
            raise Wrong(f"{path}:{number}: {key.strip()}: given twice")
        place[name or entry] = value.strip()
    for key, needed in keys.items():
        if needed and not values.get(key):
            raise Wrong(f"{path}: {key.strip()}: missing: every such file has it")
    return values


def number(path, key, text):
    """A positive whole number."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise Wrong(f"{path}: {key}: {text}: not a positive number")
    return int(text)


def one_of(path, key, text, known):
    """One of the words that are known."""
    if text not in known:
        raise Wrong(f"{path}: {key}: {text}: unknown: known are {' '.join(known)}")
    return text


def patterns(values, path):
    """Compiled regular expressions with what belongs to each."""
    try:
        return [(re.compile(text), why) for text, why in values.items()]
    except re.error as error:
        raise Wrong(f"{path}: {error}: not a regular expression") from None


class Machine:
    """One file of machines/."""

    def __init__(self, path):
        values = read(path, MACHINE_KEYS)
        self.name = os.path.basename(path)
        self.about = values["about"]
        self.arch = one_of(path, "arch", values["arch"], ARCHES)
        self.qemu = shlex.split(values["qemu"])
        # What is added for a kernel whose pages are not the smallest.
        self.qemu_pages = {one_of(path, "qemu", pages, PAGES): shlex.split(words)
                           for pages, words in values["qemu "].items()}
        self.console = values["console"]
        self.cpus = number(path, "cpus", values["cpus"])
        # Whether QEMU has a thread for each CPU, or one that takes turns.
        self.threads = one_of(path, "threads", values["threads"], THREADS)
        self.memory = number(path, "memory", values["memory"])
        self.boot = values.get("boot", "")
        # What its kernel must have said, or it is not the machine that it is called.
        self.says = patterns(values["says "], path)
        self.skips = values["skip "]
        self.allows = patterns(values["allow "], path)

    def command(self, pages):
        """QEMU's command line for a kernel with such pages, None for the smallest."""
        return self.qemu + self.qemu_pages.get(pages, [])

    def skip(self, case):
        """Why this machine cannot run the case; None if it can."""
        if case.arch and case.arch != self.arch:
            return f"for {case.arch} only"
        if case.only and not any(fnmatch.fnmatch(self.name, name) for name in case.only):
            return case.only_why
        for pattern, why in self.skips.items():
            if fnmatch.fnmatch(case.name, pattern):
                return why
        return None


class Case:
    """One file of cases/."""

    def __init__(self, path):
        values = read(path, CASE_KEYS)
        self.name = os.path.basename(path)
        self.about = values["about"]
        self.program, *self.beside = values["program"].split()
        self.arguments = shlex.split(values.get("arguments", ""))
        self.files = [one_of(path, "files", name, FILES) for name in values.get("files", "").split()]
        if self.beside and not all(name.endswith(".c") for name in (self.program, *self.beside)):
            raise Wrong(f"{path}: program: {values['program']}: only .c files are compiled into one program")
        if self.made:
            self.files.append(one_of(path, "program", self.program[len("files/"):], FILES))
        self.group = one_of(path, "group", values["group"], GROUPS)
        self.timeout = number(path, "timeout", values["timeout"])
        self.arch = one_of(path, "arch", values["arch"], ARCHES) if "arch" in values else None
        self.only, self.only_why = [], None
        if "only" in values:
            names, divider, self.only_why = values["only"].partition(": ")
            self.only = names.split()
            if not divider or not self.only:
                raise Wrong(f"{path}: only: {values['only']}: not `MACHINE...: why`")
        self.boot = values.get("boot", "")
        self.memory = number(path, "memory", values["memory"]) if "memory" in values else 0
        self.cpus = {one_of(path, "cpus", arch, ARCHES): number(path, f"cpus {arch}", count)
                     for arch, count in values["cpus "].items()}
        self.settings = self.read_settings(path, values)

    def read_settings(self, path, values):
        """The lines for the machine's init that make the settings."""
        lines = [("pool", pool(path, size), count) for size, count in values["hugepages-"].items()]
        if "thp" in values:
            lines.append(("set", THP, values["thp"]))
        for name, value in values["sysctl "].items():
            lines.append(("set", "/proc/sys/" + name.replace(".", "/"), value))
        return lines + [("set", name, value) for name, value in values["write "].items()]

    @property
    def needs(self):
        """What a boot must be like for it: cases with the same needs share one."""
        return self.boot, self.memory, tuple(self.cpus.items())

    @property
    def own(self):
        """True for a program of this repository, named by its source."""
        return self.program.endswith(".c")

    @property
    def made(self):
        """True for a program that is one of FILES, files/NAME."""
        return self.program.startswith("files/")

    @property
    def guest_path(self):
        """Where the program is in the machine."""
        if self.made:
            return "/" + self.program
        if self.own:
            return "/programs/" + os.path.basename(self.program)[:-len(".c")]
        return "/selftests/" + self.program

    def plan(self, seconds):
        """Its lines in the machine's plan."""
        steps = [("case", self.name, str(seconds)), *self.settings,
                 ("run", self.guest_path, *self.arguments)]
        return "".join("\t".join(step) + "\n" for step in steps)


def pool(path, size):
    """The kernel's file for the pool of huge pages of a size such as 64k, 2m or 1g."""
    match = re.fullmatch(r"([0-9]+)([kmg])", size)
    if not match:
        raise Wrong(f"{path}: hugepages-{size}: not a size: 64k, 2m, 1g and the like are")
    kilobytes = int(match.group(1)) * SIZES[match.group(2)]
    return f"/sys/kernel/mm/hugepages/hugepages-{kilobytes}kB/nr_hugepages"


def names(folder):
    """The names that there are, without editors' backups."""
    return sorted(name for name in os.listdir(os.path.join(HERE, folder))
                  if not name.startswith(".") and not name.endswith("~"))


def machine(name):
    """The machine of that name."""
    if name not in names("machines"):
        raise Wrong(f"{name}: unknown machine: known are {' '.join(names('machines'))}")
    return Machine(os.path.join(HERE, "machines", name))


def case(name):
    """The case of that name."""
    if name not in names("cases"):
        raise Wrong(f"{name}: unknown case: known are the groups {' '.join(GROUPS)} and the cases "
                    + " ".join(names("cases")))
    return Case(os.path.join(HERE, "cases", name))


def all_cases():
    """Every case."""
    return [case(name) for name in names("cases")]


def choose(target, wanted):
    """The cases that the words stand for, each once; a group leaves out those of other architectures."""
    chosen = {}
    for word in wanted or ["new"]:
        if word in GROUPS:
            found = [one for one in all_cases()
                     if one.group == word and one.arch in (None, target.arch)]
        else:
            found = [case(word)]
        chosen.update((one.name, one) for one in found)
    return list(chosen.values())
