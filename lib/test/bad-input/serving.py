# SPDX-License-Identifier: MIT
"""What the tests of the daemon share: a server, good VMs, bad clients.

Test support; may change freely. Not a test itself, so not executable.
"""
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time

BUILD = os.environ.get("INFILL_BUILD", "build")
SERVER = os.path.join(BUILD, "test/helper/server")
CLIENT = os.path.join(BUILD, "test/helper/vmm_client")
HANG = 60
PAGE = 4096


class Failed(Exception):
    """Something that a test waits for did not come."""


def folder():
    return tempfile.mkdtemp(prefix="s", dir=os.environ.get("TMPDIR"))


def make_image(path, pages):
    """No byte is zero: one that is read as zero is wrong."""
    with open(path, "wb") as image:
        for page in range(pages):
            image.write(b"%08d" % page * (PAGE // 8))
    return path


def until(what, condition, seconds=20):
    """Wait for a condition; its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(0.01)


def fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(") ", 1)[1][0] not in "ZX"
    except OSError:
        return False


class Server:
    """helper/server on an image of its own; it may open so many files."""

    def __init__(self, pages=512, image=None, env=None, pass_fds=(), files=None, **options):
        self.dir = folder()
        self.socket = os.path.join(self.dir, "sock")
        self.image = image or make_image(os.path.join(self.dir, "image"), pages)
        self.log_path = os.path.join(self.dir, "log")
        self.options = [f"{name}={value}" for name, value in options.items()]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [SERVER, self.socket, self.image] + self.options, stdout=subprocess.PIPE,
                stderr=log, stdin=subprocess.DEVNULL, env=env, pass_fds=pass_fds,
                preexec_fn=files and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))))
        self.pid = self.process.pid
        if self.process.stdout.read(1) != b"r":
            self.process.wait(HANG)

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def logged(self, text, seconds=20):
        until(f"the log says {text!r}", lambda: text in self.log(), seconds)

    def ask(self, what, timeout=20):
        """All bytes of the answer to a control request."""
        with connect(self, timeout) as client:
            client.sendall(json.dumps({"infill": what}).encode())
            return drain(client)

    def stat(self):
        # A worker that dies while it writes cuts the answer short.
        for _ in range(50):
            answer = self.ask("stat")
            if answer.endswith(b"\n"):
                return json.loads(answer)
            time.sleep(0.02)
        raise Failed("no whole answer")

    def running(self):
        return [vm for vm in self.stat()["vms"] if vm["state"] == "running"]

    def worker(self):
        return self.stat()["worker_pid"]

    def stop(self, times=1):
        """Exit status after so many requests to stop."""
        for _ in range(times):
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                time.sleep(0.2 if times > 1 else 0)
        return self.process.wait(HANG)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()
        sys.stderr.write("".join(f"# {line}\n" for line in self.log().splitlines()[-40:]))


class Vm:
    """helper/vmm_client: a VMM that reads all its memory and compares it with the image."""

    def __init__(self, server, *options, connected=True):
        self.process = subprocess.Popen(
            [CLIENT, server.socket, server.image, *options], stdout=subprocess.PIPE,
            stdin=subprocess.PIPE, text=True)
        self.first = self.process.stdout.readline() if connected else ""
        if connected and self.first != "connected\n":
            raise Failed(f"vmm_client: {self.first}{self.process.stdout.read()}")

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        """What it said at last, when it exited with success."""
        output = self.process.stdout.read()  # not communicate(): readline() has read ahead
        self.process.wait(HANG)
        self.process.stdin.close()
        if self.process.returncode:
            raise Failed(f"vmm_client: exit {self.process.returncode}: {output}")
        return output

    def kill(self):
        self.process.kill()
        self.process.wait(HANG)


def connect(server, timeout=20):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(timeout)
    client.connect(server.socket)
    return client


def drain(client):
    """All bytes until the other side closes."""
    data = b""
    while True:
        try:
            more = client.recv(65536)
        except ConnectionResetError:
            return data
        if not more:
            return data
        data += more


def told(client):
    """The reason in the pager's error line, after which it closes."""
    answer = json.loads(drain(client))
    assert answer["infill"] == "error", answer
    return answer["what"]


def region(hva=0x100000, size=PAGE, offset=0, **more):
    return dict(base_host_virt_addr=hva, size=size, offset=offset, **more)


def need_userfaultfd():
    """Skip where the good VM cannot be."""
    probe = subprocess.run([CLIENT, "/nonexistent/socket", sys.argv[0]], stdout=subprocess.PIPE,
                           text=True, check=False)
    return probe.stdout.strip() if probe.returncode == 3 else ""
