#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Describes the machine that figures come from: what a reader needs to judge them."""
import os
import platform

import vm


def first_line(path, otherwise=None):
    """A one-line file's content, such as those of sysfs."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().strip()
    except OSError:
        return otherwise


def cpu_model():
    """The name of the first CPU; arm64 has none there, and gives its architecture."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def memory_mib():
    """All memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def file_system(path):
    """The type and the source of the file system that holds a path, from mountinfo."""
    device = os.stat(path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            fields = line.split()
            if fields[2] == number:
                after = fields.index("-")
                return number, fields[after + 1], fields[after + 2]
    return number, "unknown", "unknown"


def disk(path):
    """The disk under a path. Its read-ahead decides what a cold mapped file costs."""
    number, kind, source = file_system(path)
    block = f"/sys/dev/block/{number}"
    if os.path.exists(f"{block}/partition"):
        block = os.path.join(os.path.realpath(block), "..")
    ahead = first_line(f"{block}/queue/read_ahead_kb")
    return {
        "file_system": kind,
        "device": os.path.basename(source),
        "rotational": {"0": False, "1": True}.get(first_line(f"{block}/queue/rotational")),
        "read_ahead_kib": int(ahead) if ahead else None,
    }


def describe():
    """All of it, for JSON."""
    return {
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": memory_mib(),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "qemu": vm.qemu_version(),
        "guest_kernel": first_line(os.path.join(vm.OUT, "kernel.version")),
        "disk": disk(vm.OUT),
        "load": os.getloadavg()[0],
    }
