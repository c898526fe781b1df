# SPDX-License-Identifier: MIT
"""A VM with KVM Userfault for the tests of the daemon, written from infill-protocol(7) alone.

Test support; may change freely. Not a test itself, so not executable.
"""
import fcntl
import os
import socket
import struct

import tap
from serving import PAGE, connect

PAGES = 512
BYTES = PAGES * PAGE
BITMAP = PAGE  # 512 bits fit
GPA = 1 << 30
SERVED, RESIDENT, ERROR = 1, 2, 3
F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_WRITE = 1033, 2, 8


def memfd(size, seals=F_SEAL_SHRINK):
    file = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size)
    fcntl.fcntl(file, F_ADD_SEALS, seals)
    return file


def bitmap_file(seals=F_SEAL_SHRINK):
    file = memfd(BITMAP, 0)
    os.pwrite(file, b"\xff" * BITMAP, 0)
    fcntl.fcntl(file, F_ADD_SEALS, seals)
    return file


def region(gpa=GPA, size=BYTES, offset=0, hva=0, bitmap_at=0, file_at=0, page=PAGE, backing=3,
           file=0, reserved=0):
    return struct.pack("<6Q4I", gpa, size, offset, hva, bitmap_at, file_at, page, backing, file,
                       reserved)


def hello(*regions, version=1, flags=0, files=1, channels=1):
    regions = regions or (region(),)
    return struct.pack("<8s6IQ24x", b"\x89INFILL\n", version, 64 + 64 * len(regions), flags,
                       len(regions), files, channels, os.sysconf("SC_PAGESIZE")) + b"".join(regions)


class Vm:
    """One with a channel, whose requests are made by hand."""

    def __init__(self, server, message=None, bitmap=None, memory=None, more=(), channel=None):
        self.bitmap = bitmap_file() if bitmap is None else bitmap
        self.memory = memfd(BYTES) if memory is None else memory
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(20)
        self.main = connect(server)
        given = theirs.fileno() if channel is None else channel
        socket.send_fds(self.main, [message or hello()], [self.bitmap, self.memory, given, *more])
        theirs.close()

    def notice(self):
        """The next: type, errno, text; None at the end."""
        head = self.main.recv(16, socket.MSG_WAITALL)
        if len(head) < 16:
            return None
        kind, size, error, _ = struct.unpack("<4I", head)
        return kind, error, self.main.recv(size - 16, socket.MSG_WAITALL).decode() if size > 16 else ""

    def served(self):
        said = self.notice()
        tap.equal(said and said[0], SERVED, f"it is served: {said}")
        return self

    def ask(self, gpa, sequence=1):
        self.channel.send(struct.pack("<4Q", sequence, gpa, 0, 0))

    def answer(self):
        """The next that is no "ask again": sequence, status, gpa, bytes."""
        while True:
            sequence, status, _, gpa, size = struct.unpack("<QIIQQ", self.channel.recv(64))
            if sequence:
                return sequence, status, gpa, size

    def check_page(self, page, sequence):
        """Ask for a page and compare it, and its bit."""
        self.ask(GPA + page * PAGE, sequence)
        got, status, gpa, size = self.answer()
        tap.equal((got, status), (sequence, 0), "sequence and status")
        tap.true(gpa <= GPA + page * PAGE < gpa + size, "the answer is for the page")
        tap.equal(os.pread(self.bitmap, 1, page // 8)[0] >> page % 8 & 1, 0, "its bit")
        tap.equal(os.pread(self.memory, PAGE, page * PAGE), b"%08d" % page * (PAGE // 8), "its content")

    def close(self):
        self.main.close()
        self.channel.close()
        os.close(self.bitmap)
        os.close(self.memory)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
