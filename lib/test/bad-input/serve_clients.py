#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Clients of the daemon that break the protocol: each is told what is wrong, nobody else notices.

A case is a line in MESSAGES or a function.
"""
import json
import os
import signal
import socket
import time

import tap
from serving import PAGE, Server, Vm, alive, connect, drain, fds, need_userfaultfd, region, told, until

PAGES = 512
BYTES = PAGES * PAGE

# What is sent with one pipe as the file descriptor, and a part of the answer.
MESSAGES = [
    ("text that is no JSON", "hello", "is not JSON"),
    ("an HTTP request", "GET / HTTP/1.1\r\n\r\n", "is not JSON"),
    ("a NUL", "[\0]", "control character"),
    ("brackets that do not match", "[}", "is not JSON"),
    ("bytes after the message", "[] []", "bytes follow"),
    ("a depth bomb", "[" * 1000, "nested deeper"),
    ("an object with a file", '{"infill":"stat"}', "object with a file descriptor"),
    ("no region", "[]", "names no region"),
    ("a region that is no object", "[1]", "region 0: is not an object"),
    ("a missing field", [dict(size=PAGE, offset=0)], "base_host_virt_addr: is missing"),
    ("a string for a number", [region(size="4096")], "size: is not an integer"),
    ("a negative size", [region(size=-PAGE)], "size: is negative"),
    ("a size of 0", [region(size=0)], "size: is 0"),
    ("a size that is not whole pages", [region(size=PAGE + 1)], "size: is 4097"),
    ("an address that is not aligned", [region(hva=0x100001)], "is not aligned"),
    ("an offset that is not aligned", [region(offset=1)], "offset: 1"),
    ("an unknown page size", [region(page_size=8192)], "page_size: is 8192"),
    ("a size past the image's end", [region(size=BYTES + PAGE)], "past the image's end"),
    ("an offset past the image's end", [region(offset=BYTES)], "past the image's end"),
    ("a size that wraps", [region(size=2**63 - PAGE)], "past the image's end"),
    ("a number that is too big", [region(size=2**64 - PAGE)], "too big integer"),
    ("regions that overlap", [region(size=2 * PAGE), region(hva=0x101000)], "overlap in hva"),
    ("too many regions", [region(hva=(i + 1) << 20) for i in range(65)], "names 65 regions"),
    ("guest_memfd", [region(is_guest_memfd=True)], "guest_memfd"),
    ("a pipe for a userfaultfd", [region()], "is not a userfaultfd"),
]

SERVER = None
BYSTANDER = None


def says(text, part):
    tap.contains(text, part, "the answer")


def send(server, message, files=()):
    """A client that has sent this."""
    client = connect(server)
    text = message if isinstance(message, str) else json.dumps(message)
    if files:
        socket.send_fds(client, [text.encode("latin-1")], list(files))
    else:
        client.sendall(text.encode("latin-1"))
    return client


def check_message(message, part):
    reader, writer = os.pipe()
    try:
        with send(SERVER, message, [writer]) as client:
            says(told(client), part)
    finally:
        os.close(reader)
        os.close(writer)


for row in MESSAGES:
    tap.add(row[0], check_message, *row[1:])


@tap.test("no file descriptor")
def no_fd():
    with send(SERVER, [region()]) as client:
        says(told(client), "has no file descriptor")


@tap.test("two file descriptors")
def two_fds():
    with send(SERVER, [region()], [0, 0]) as client:
        says(told(client), "more than one file descriptor")


@tap.test("a hundred file descriptors")
def hundred_fds():
    with send(SERVER, [region()], [0] * 100) as client:
        says(told(client), "more than one file descriptor")


@tap.test("/dev/null for a userfaultfd")
def dev_null():
    with open("/dev/null", "rb") as null, send(SERVER, [region()], [null.fileno()]) as client:
        says(told(client), "is not a userfaultfd")


@tap.test("a message of 1 MiB")
def oversized():
    with connect(SERVER) as client:
        try:
            client.sendall(b"[" + b" " * (1 << 20))
        except (BrokenPipeError, ConnectionResetError):
            pass
        says(told(client), "is longer than 65536 bytes")


@tap.test("a message that is cut off")
def cut_off():
    with send(SERVER, "[{") as client:
        client.shutdown(socket.SHUT_WR)
        says(told(client), "closed before the message was whole")


@tap.test("an unknown control request")
def unknown_control():
    with send(SERVER, '{"infill":"reboot"}') as client:
        says(told(client), "must be an array of regions")


@tap.test("a cache of a pager that has none")
def no_cache():
    with send(SERVER, '{"infill":"cache"}') as client:
        says(told(client), "offers no cache")


@tap.test("a silent client is let go after handshake_ms")
def silent():
    with Server(pages=1, handshake_ms=300) as server, connect(server) as client:
        begin = time.monotonic()
        says(told(client), "not whole within 300 ms")
        tap.true(0.2 < time.monotonic() - begin < 5, "after about 300 ms")


@tap.test("a client that drips is let go after handshake_ms")
def drip():
    with Server(pages=1, handshake_ms=500) as server, connect(server) as client:
        begin = time.monotonic()
        try:
            for byte in "[" + " " * 1000:
                client.sendall(byte.encode())
                time.sleep(0.01)
        except (BrokenPipeError, ConnectionResetError):
            pass
        tap.true(time.monotonic() - begin < 5, "the drip was ended")
        says(told(client), "not whole within 500 ms")


@tap.test("a message in many pieces is whole at its end")
def pieces():
    with connect(SERVER) as client, open("/dev/null", "rb") as null:
        text = json.dumps([region(offset=BYTES)]).encode()
        socket.send_fds(client, [text[:1]], [null.fileno()])
        for i in range(1, len(text)):
            client.sendall(text[i:i + 1])
        says(told(client), "past the image's end")


@tap.test("more silent clients than max_clients hold up no VM")
def max_clients():
    with Server(pages=16, max_clients=3, handshake_ms=20000) as server:
        idle = [connect(server) for _ in range(3)]
        until("they are accepted", lambda: fds(server.pid) >= 10)
        tap.equal(Vm(server).end(), "ok 16\n", "a VM beside them")
        says(told(idle[0]), "more than 3 clients")
        for _ in range(20):
            idle.append(connect(server))
        tap.equal(Vm(server).end(), "ok 16\n", "a VM behind 20 more")
        for client in idle:
            client.close()


@tap.test("more VMs than max_vms: refused, and reads no zeros")
def max_vms():
    with Server(pages=16, max_vms=2, fill=2) as server:
        served = [Vm(server, "--hold") for _ in range(2)]
        until("both run", lambda: len(server.running()) == 2)
        extra = Vm(server, "--close", "--wait-error")
        said = extra.end()
        says(said, "serves 2 VMs already")
        says(said, "ok blocked")
        for vm in served:
            vm.go()
            tap.equal(vm.end(), "ok 16\n", "a VM beside it")
        until("there is room again", lambda: not server.running())
        tap.equal(Vm(server).end(), "ok 16\n", "a VM after it")


@tap.test("a VM that is refused reads no zeros, though it closed its userfaultfd")
def refused_reads_nothing():
    said = Vm(SERVER, "--bad", "--close").end()
    says(said, "past the image's end")
    says(said, "ok blocked")


@tap.test("a reader that takes no answer holds up no other")
def stuck_reader():
    stuck = [connect(SERVER) for _ in range(8)]
    for client in stuck:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.sendall(b'{"infill":"hdr"}')
    begin = time.monotonic()
    SERVER.stat()
    tap.true(time.monotonic() - begin < 2, "stat is answered at once")
    for client in stuck:
        client.close()


@tap.test("stat and hdr say what they should")
def stat():
    answer = SERVER.stat()
    tap.equal(answer["supervisor_pid"], SERVER.pid, "supervisor_pid")
    tap.true(alive(answer["worker_pid"]), "the worker lives")
    vm = [vm for vm in answer["vms"] if vm["pid"] == BYSTANDER.process.pid][0]
    tap.equal(vm["state"], "running", "state")
    tap.equal(vm["pages"], PAGES, "pages")
    tap.equal(vm["error"], None, "error")
    tap.true(vm["latency"]["count"] > 0 and vm["times"]["start_ns"] > 0, "it was measured")
    head, _, body = SERVER.ask("hdr").partition(b"\n")
    tap.equal(json.loads(head)["bytes"], len(body.rstrip(b"\n")) + body.endswith(b"\n"), "length")
    says(body.decode(), "Percentile")


def churn(server, count):
    reader, writer = os.pipe()
    for i in range(count):
        if i % 4 == 0:
            send(server, [region(offset=BYTES)], [writer]).close()
        elif i % 4 == 1:
            send(server, "[[" if i % 8 == 1 else "?", [reader, writer]).close()
        elif i % 4 == 2:
            connect(server).close()
        else:
            with send(server, [region()], [writer]) as client:
                drain(client)
    os.close(reader)
    os.close(writer)


@tap.test("1000 clients leave no file open, no process behind")
def no_leaks():
    with Server(pages=64) as server:
        worker = server.worker()
        churn(server, 16)
        Vm(server).end()
        until("it is quiet", lambda: not server.running())
        before = fds(server.pid), fds(worker)
        churn(server, 1000)
        for _ in range(20):
            Vm(server).end()
        until("it is quiet", lambda: not server.running())
        time.sleep(0.2)
        tap.equal((fds(server.pid), fds(worker)), before, "open files of supervisor and worker")
        tap.equal(server.worker(), worker, "the worker is the same")


@tap.test("a VM beside all of them was served undisturbed")
def bystander():
    tap.equal(BYSTANDER.process.poll(), None, "it still reads")
    BYSTANDER.process.send_signal(signal.SIGUSR1)
    tap.equal(BYSTANDER.end(), f"ok {PAGES}\n", "every byte")
    tap.equal(SERVER.stat()["restarts"], 0, "restarts")


def main():
    global SERVER, BYSTANDER
    reason = need_userfaultfd()
    if reason:
        tap.skip_all(reason)
    with Server(pages=PAGES, fill=2) as SERVER:
        BYSTANDER = Vm(SERVER, "--pause-us", "100000")
        tap.run()


if __name__ == "__main__":
    main()
