#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""VMs with KVM Userfault that break the protocol of infill-protocol(7), written from that page alone.

Each is told what is wrong, and nobody else notices. A case is a line in HELLOS or a function.
"""
import ctypes
import errno
import os
import signal
import socket
import struct
import time

import tap
from serving import PAGE, Server, alive, connect, fds, until
from userfault_vm import (BITMAP, BYTES, ERROR, F_SEAL_SHRINK, F_SEAL_WRITE, GPA, PAGES, RESIDENT,
                          SERVED, Vm, bitmap_file, hello, memfd, region)

KEEP_SIZE, PUNCH_HOLE = 1, 2

SERVER = None


def refused(vm, part):
    """The VM is told this, and its connection is closed."""
    with vm:
        said = vm.notice()
        tap.equal(said and said[0], ERROR, f"it is refused: {said}")
        tap.contains(said[2], part, "the reason")
        tap.equal(vm.notice(), None, "the connection is closed")


HELLOS = [
    ("a version that is not known", hello(version=2), "version: is 2: this pager speaks 1"),
    ("a flag that is not known", hello(flags=4), "flags: 0x4"),
    ("a userfaultfd that does not come", hello(flags=1), "announces a userfaultfd, and none came"),
    ("memory past the image's end", hello(region(size=BYTES + PAGE)), "past the image's end"),
    ("a file that is not there", hello(region(file=1)), "file: there is none of that number"),
    ("a bitmap past its file's end", hello(region(bitmap_at=PAGE)), "bitmap 0: has 4096 bytes: 8192"),
    ("memory past its file's end", hello(region(file_at=PAGE)), "file 0: has 2097152 bytes"),
    ("fewer fds than announced", hello(channels=3), "3 file descriptors that are no userfaultfd: 5"),
    ("more fds than announced", hello(files=0, channels=1), "there is none of that number"),
    ("regions that overlap", hello(region(size=PAGE * 2), region(gpa=GPA + PAGE, size=PAGE)),
     "region 1: overlaps"),
    ("a reserved field", hello(region(reserved=1)), "reserved: must be 0"),
    ("a length that is too short", b"\x89INFILL\n" + struct.pack("<II", 1, 16) + bytes(48),
     "bytes: is 16"),
    ("a magic that is not infill's", b"\x89PNG\r\n\x1a\n" + bytes(56), "is not that of infill's magic"),
    ("bytes behind the hello", hello() + b"x", "bytes follow the message"),
]

for row in HELLOS:
    tap.add(row[0], lambda message, part: refused(Vm(SERVER, message), part), *row[1:])


@tap.test("a bitmap that can be cut short")
def unsealed_bitmap():
    refused(Vm(SERVER, bitmap=bitmap_file(0)), "bitmap 0: is not sealed against shrinking")


@tap.test("memory that can be cut short")
def unsealed_memory():
    refused(Vm(SERVER, memory=memfd(BYTES, 0)), "file 0: is not sealed against shrinking")


@tap.test("a bitmap that cannot be written")
def read_only_bitmap():
    refused(Vm(SERVER, bitmap=bitmap_file(F_SEAL_SHRINK | F_SEAL_WRITE)), "cannot map")


@tap.test("files of other kinds")
def other_files():
    null = os.open("/dev/null", os.O_RDWR)
    disk = os.open(os.path.join(SERVER.dir, "disk"), os.O_RDWR | os.O_CREAT)
    os.ftruncate(disk, BYTES)
    refused(Vm(SERVER, bitmap=null), "bitmap 0: is no memfd")
    refused(Vm(SERVER, memory=disk), "file 0: is no")


@tap.test("channels of other kinds")
def other_channels():
    stream, other = socket.socketpair()
    reader, writer = os.pipe()
    refused(Vm(SERVER, channel=stream.fileno()), "channel 0: is no SOCK_SEQPACKET")
    refused(Vm(SERVER, channel=reader), "channel 0: is no SOCK_SEQPACKET")
    for file in (reader, writer):
        os.close(file)
    stream.close()
    other.close()


@tap.test("no file descriptor at all")
def no_fd():
    with connect(SERVER) as main:
        main.sendall(hello())
        kind, size, _, _ = struct.unpack("<4I", main.recv(16, socket.MSG_WAITALL))
        tap.equal(kind, ERROR, "it is refused")
        tap.contains(main.recv(size - 16).decode(), "0 file descriptors", "the reason")


@tap.test("more fds than a hello may have")
def too_many_fds():
    refused(Vm(SERVER, more=[0] * 240), "more file descriptors than")


@tap.test("a hello in many pieces is served")
def pieces():
    vm = Vm(SERVER, hello()[:1])
    for byte in hello()[1:]:
        vm.main.sendall(bytes([byte]))
    with vm.served():
        vm.check_page(3, 1)


@tap.test("requests for what is not there, and again")
def odd_requests():
    with Vm(SERVER).served() as vm:
        for sequence, gpa in enumerate((0, GPA - 1, GPA + BYTES, 2**64 - 1), 1):
            vm.ask(gpa, sequence)
            tap.equal(vm.answer()[:2], (sequence, errno.EFAULT), f"{gpa:#x}")
        vm.ask(GPA + 5 * PAGE + 123, 5)
        tap.equal(vm.answer()[:2], (5, 0), "in the middle of a page")
        for sequence in (6, 6, 2, 2**64 - 1):
            vm.check_page(5, sequence)


def fails(text, part):
    """A VM whose request is this fails: its channel says no more, its connection says why."""
    with Vm(SERVER).served() as vm:
        vm.check_page(1, 1)
        vm.channel.send(text)
        said = vm.notice()
        tap.equal(said[0], ERROR, "it fails")
        tap.contains(said[2], part, "the reason")
        try:
            vm.ask(GPA, 9)
            tap.equal(vm.answer()[:2], (9, errno.EPROTO), "what it asks then")
        except OSError:
            pass


@tap.test("requests of another length, or with sequence 0")
def malformed_requests():
    fails(b"?", "a request of 1 bytes")
    fails(bytes(33), "a request of 33 bytes")
    fails(bytes(100000), "a request of 100000 bytes")
    fails(struct.pack("<4Q", 0, GPA, 0, 0), "sequence is 0")
    fails(struct.pack("<4Q", 1, GPA, 0, 1), "reserved is not")


@tap.test("a flood of requests whose answers nobody reads holds up no other VM")
def flood():
    with Vm(SERVER).served() as bad, Vm(SERVER).served() as good:
        bad.channel.setblocking(False)
        begin = time.monotonic()
        for i in range(20000):
            try:
                bad.ask(GPA + i % PAGES * PAGE, i + 1)
            except BlockingIOError:
                time.sleep(0.0001)
            if i % 1000 == 0:
                good.check_page(i // 1000, i + 1)
        tap.true(time.monotonic() - begin < 60, "in time")
        bad.channel.settimeout(20)
        tap.equal(bad.answer()[1], 0, "and an answer is there")


def punch(file, size):
    """Give the file's memory back."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(file, KEEP_SIZE | PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(size)):
        raise OSError(ctypes.get_errno(), "fallocate")


@tap.test("memory and bitmap that get holes while they are filled")
def holes():
    with Vm(SERVER).served() as vm:
        for page in range(0, PAGES, 2):
            punch(vm.memory, BYTES)
            punch(vm.bitmap, BITMAP)
            vm.ask(GPA + page * PAGE, page + 1)
            tap.equal(vm.answer()[1], 0, "the pager lives")


@tap.test("a VM that goes is forgotten, whatever it waits for")
def goes():
    with Vm(SERVER).served() as vm:
        vm.ask(GPA, 1)
    until("it is forgotten", lambda: not SERVER.running())


@tap.test("hundreds of VMs leave no file open")
def no_leaks():
    worker = SERVER.worker()
    until("it is quiet", lambda: not SERVER.running())
    before = fds(SERVER.pid), fds(worker)
    for i in range(300):
        if i % 3 == 0:
            Vm(SERVER).close()
        elif i % 3 == 1:
            refused(Vm(SERVER, hello(flags=4)), "flags")
        else:
            with Vm(SERVER).served() as vm:
                vm.check_page(i, 1)
    until("it is quiet", lambda: not SERVER.running())
    until("open files are as before", lambda: (fds(SERVER.pid), fds(worker)) == before, 5)
    tap.equal(SERVER.worker(), worker, "the worker is the same")


@tap.test("more VMs than max_vms, and one that comes when there is room again")
def max_vms():
    with Server(pages=PAGES, max_vms=1, fill=2) as server:
        with Vm(server).served() as vm:
            refused(Vm(server), "serves 1 VMs already")
            vm.check_page(1, 1)
        until("there is room", lambda: not server.running())
        with Vm(server).served() as vm:
            vm.check_page(2, 1)


@tap.test("a worker that dies: asked again, and what was written stays")
def asked_again():
    with Vm(SERVER).served() as vm:
        vm.check_page(7, 1)
        os.pwrite(vm.memory, b"guest", 7 * PAGE)
        worker = SERVER.worker()
        os.kill(worker, signal.SIGKILL)
        until("it is dead", lambda: not alive(worker))
        tap.equal(vm.notice()[0], SERVED, "the next worker says so")
        tap.equal(struct.unpack("<QIIQQ", vm.channel.recv(64))[0], 0, "ask again")
        vm.ask(GPA + 7 * PAGE, 2)
        tap.equal(vm.answer()[:2], (2, 0), "it is there")
        tap.equal(os.pread(vm.memory, 5, 7 * PAGE), b"guest", "what was written")
        vm.check_page(8, 3)


@tap.test("the bits of settled pages are cleared again by the next worker")
def bits_again():
    with Vm(SERVER).served() as vm:
        vm.check_page(9, 1)
        os.pwrite(vm.bitmap, b"\xff", 1)  # as if the worker had died before it cleared it
        os.kill(SERVER.worker(), signal.SIGKILL)
        tap.equal(vm.notice()[0], SERVED, "the next worker")
        until("the bit is clear", lambda: os.pread(vm.bitmap, 1, 1)[0] == 0xff & ~2)


@tap.test("all pages without being asked, and told so")
def resident():
    with Server(pages=PAGES) as server, Vm(server).served() as vm:
        tap.equal(vm.notice()[0], RESIDENT, "it is told")
        tap.equal(os.pread(vm.bitmap, PAGES // 8, 0), bytes(PAGES // 8), "every bit")
        os.kill(server.worker(), signal.SIGKILL)
        tap.equal([vm.notice()[0] for _ in range(2)], [SERVED, RESIDENT], "and again by the next")
        tap.equal(server.stop(), 0, "the daemon may go")
        tap.equal(vm.notice(), None, "the end")


@tap.test("too few files for a VM")
def few_files():
    with Server(pages=PAGES, max_vms=1, max_clients=1, files=300) as server:
        null = [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]
        refused(Vm(server, hello(channels=200 - 60), more=null), "than this pager may open")
        with Vm(server).served() as vm:
            vm.check_page(0, 1)
        for file in null:
            os.close(file)


def main():
    global SERVER
    with Server(pages=PAGES, fill=2, on_error=1) as SERVER:
        tap.run()


if __name__ == "__main__":
    main()
