#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The saved guest: a memory file and the devices' state, made once and proved unchanged after.

Kept in build/guest/snapshot and used again while kernel, initrd, QEMU and its options are those
that it was made with. Nothing may write to the memory file: it belongs to the state beside it.
"""
import ctypes
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import subprocess

import vm

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                      ctypes.c_int, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
PAGE = mmap.PAGESIZE


def digest(path):
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(path):
    """What changes when a file is written or replaced."""
    status = os.stat(path)
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def cached_pages(path):
    """How many pages of a file the page cache holds."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        address = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == ctypes.c_void_p(-1).value:
        raise vm.Failure(f"{path}: mmap: {os.strerror(ctypes.get_errno())}")
    pages = ctypes.create_string_buffer((size + PAGE - 1) // PAGE)
    failed = LIBC.mincore(address, size, pages)
    LIBC.munmap(address, size)
    if failed:
        raise vm.Failure(f"{path}: mincore: {os.strerror(ctypes.get_errno())}")
    return sum(byte & 1 for byte in pages.raw)


def make_cold(path):
    """Drop a file from the page cache; raise when it does not go."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    left = cached_pages(path)
    if left:
        raise vm.Failure(f"{path}: {left} pages stay in the page cache: "
                         "is it on a memory file system, or mapped by another process?")


def data_extents(fd):
    """The parts of a file that are not holes, as (start, end)."""
    size, at = os.fstat(fd).st_size, 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, at, os.SEEK_HOLE)
        yield at, end
        at = end


def make_warm(path):
    """Read all that is not a hole into the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end in data_extents(fd):
            while start < end:
                start += len(os.pread(fd, min(1 << 22, end - start), start))
    finally:
        os.close(fd)


def copy(source, target):
    """Copy a file with its holes and sync it; all bytes are really copied, without reflinks."""
    src = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    dst = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(dst, os.fstat(src).st_size)
        for start, end in data_extents(src):
            while start < end:
                data = os.pread(src, min(1 << 22, end - start), start)
                start += os.pwrite(dst, data, start)
        os.fsync(dst)
    finally:
        os.close(src)
        os.close(dst)


def reference(requests=1):
    """The guest's answers as foretold: [(work sum, all sum)] for each request."""
    done = subprocess.run([os.path.join(vm.OUT, "reference"), str(requests)],
                          capture_output=True, text=True, check=True).stdout.split("\n")
    sums = [line.rsplit(" ", 1)[1] for line in done if " ok " in line]
    return list(zip(sums[0::2], sums[1::2]))


def ask(guest, line, answer, right, timeout=60):
    """Send the guest a line, compare its answer, return the guest's own time for it in ns."""
    guest.serial.send(line.encode() + b"\n")
    words = guest.expect(answer, timeout).split()
    if words[-2] != right:
        raise vm.Failure(f"guest: wrong data: `{line}` gave the checksum {words[-2]}, "
                         f"right is {right}")
    return int(words[-1])


def ask_work(guest, expected, number=1):
    """Request @number; @expected is from reference()."""
    return ask(guest, "go", f"work {number} ok", expected[0])


def ask_check(guest, expected):
    """Check all data after a request."""
    return ask(guest, "check", "all ok", expected[1])


class Snapshot:
    """A saved guest in a directory: memory, state, and key.json that says what made it."""

    def __init__(self, accel="tcg", cpus=1, directory=None):
        self.accel = accel
        self.cpus = cpus
        self.directory = directory or os.path.join(vm.OUT, "snapshot")
        self.memory = os.path.join(self.directory, "memory")
        self.state = os.path.join(self.directory, "state")
        self.expected = reference()[0]

    def key(self):
        """What the saved guest depends on; the memory file's path is none of it."""
        line = vm.Vm("memory", accel=self.accel, cpus=self.cpus).command()
        line = [word for word in line if "mem-path=" not in word]
        files = [os.path.join(vm.OUT, name) for name in ("vmlinuz", "initrd")]
        return {"qemu": vm.qemu_version(), "command": line, "files": [digest(f) for f in files]}

    def load(self):
        """True when what is there can be used; read its content's digest."""
        try:
            with open(os.path.join(self.directory, "key.json"), encoding="utf-8") as file:
                known = json.load(file)
            self.digest = known["digest"]
            return (known["key"] == self.key() and known["identity"] == identity(self.memory)
                    and os.path.exists(self.state))
        except (OSError, ValueError, KeyError):
            return False

    def ensure(self, log=None):
        """Make it unless it is there. Two drivers at once: the second waits for the first."""
        os.makedirs(vm.OUT, exist_ok=True)
        with open(os.path.join(vm.OUT, "snapshot.lock"), "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.load():
                self.make(log)
        return self

    def make(self, log):
        """Boot, fill, save; only a whole snapshot gets the name."""
        with vm.WorkDirectory() as work:
            memory = work.file("memory")
            with vm.Vm(memory, accel=self.accel, cpus=self.cpus, log=log) as guest:
                guest.expect("filled", 120)
                guest.save(work.file("state"))
            self.settle(memory)
            self.digest = digest(memory)
            with open(work.file("key.json"), "w", encoding="utf-8") as file:
                json.dump({"key": self.key(), "identity": identity(memory),
                           "digest": self.digest}, file, indent=1)
            os.chmod(work.path, 0o755)
            shutil.rmtree(self.directory, ignore_errors=True)
            os.rename(work.path, self.directory)

    @staticmethod
    def settle(path):
        """Write out what QEMU left dirty, so that no later write changes the time stamps."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(fd)
        os.close(fd)

    def check_unchanged(self, content=False):
        """Raise when the memory file is not what was saved; @content compares every byte."""
        with open(os.path.join(self.directory, "key.json"), encoding="utf-8") as file:
            known = json.load(file)
        if identity(self.memory) != known["identity"]:
            self.refuse("was written to after the save")
        if content and digest(self.memory) != known["digest"]:
            self.refuse("its content changed after the save")

    def refuse(self, why):
        """Never use this one again: without its key the next driver makes a new one."""
        os.unlink(os.path.join(self.directory, "key.json"))
        raise vm.Failure(f"{self.memory}: {why}: the next run makes a new one")


def main():
    """Make the snapshot and say where it is."""
    snapshot = Snapshot().ensure(log=print)
    print(snapshot.directory)


if __name__ == "__main__":
    main()
