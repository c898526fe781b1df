#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The daemon without a supervisor: a service manager keeps the fds, here one made of a few lines.

It receives FDSTORE= datagrams with SCM_RIGHTS, answers barriers by closing their fd, and passes
what it holds to the next process by LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES, as systemd does.
"""
import array
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import tap
import userfault_vm
from serving import SERVER, Failed, Vm, connect, drain, folder, make_image, need_userfaultfd, until

FD_STORE, SHARED = 1, 2


class Manager:
    """A service manager with one service."""

    def __init__(self, pages, activate=False, **options):
        self.dir = folder()
        self.socket = os.path.join(self.dir, "sock")
        self.image = make_image(os.path.join(self.dir, "image"), pages)
        self.options = [f"{name}={value}" for name, value in options.items()]
        self.stored = []  # (name, fd) in the order of arrival
        self.messages = []
        self.lock = threading.Lock()
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(os.path.join(self.dir, "notify"))
        self.listener = None
        if activate:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(self.socket)
            self.listener.listen(16)
        threading.Thread(target=self.receive, daemon=True).start()
        self.process = None

    def receive(self):
        while True:
            data, ancillary, _, _ = self.notify.recvmsg(4096, socket.CMSG_SPACE(253 * 4))
            fds = array.array("i")
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(content[:len(content) - len(content) % 4])
            with self.lock:
                self.obey(data.decode(), list(fds))

    def obey(self, text, fds):
        fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        if fields.get("FDSTORE") == "1":
            self.stored += [(fields["FDNAME"], fd) for fd in fds]
        else:
            for fd in fds:
                os.close(fd)
        if fields.get("FDSTOREREMOVE") == "1":
            gone = [entry for entry in self.stored if entry[0] == fields["FDNAME"]]
            self.stored = [entry for entry in self.stored if entry[0] != fields["FDNAME"]]
            for _, fd in gone:
                os.close(fd)
        self.messages.append(text)

    def names(self):
        with self.lock:
            return sorted({name for name, _ in self.stored})

    def start(self):
        """Start the service as systemd does: what it passes is fd 3 and up."""
        with self.lock:
            passed = list(self.stored)
        if self.listener:
            passed.insert(0, ("infill.socket", self.listener.fileno()))
        self.messages.clear()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, json.dumps(passed), SERVER, self.socket, self.image,
             f"flags={FD_STORE}"] + self.options,
            env=dict(os.environ, NOTIFY_SOCKET=os.path.join(self.dir, "notify")),
            pass_fds=[fd for _, fd in passed], stdout=subprocess.DEVNULL,
            stderr=open(os.path.join(self.dir, "log"), "ab"))  # pylint: disable=consider-using-with
        until("READY=1", lambda: any("READY=1" in text for text in self.messages))

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stat(self):
        for _ in range(100):
            try:
                with connect(self) as client:
                    client.sendall(b'{"infill":"stat"}')
                    answer = drain(client)
            except ConnectionError:
                answer = b""
            if answer.endswith(b"\n"):
                return json.loads(answer)
            time.sleep(0.02)
        raise Failed("no answer")

    def running(self):
        return [vm for vm in self.stat()["vms"] if vm["state"] == "running"]

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        with open(os.path.join(self.dir, "log"), encoding="utf-8") as log:
            sys.stderr.write("".join(f"# {line}" for line in log.readlines()[-40:]))


# Moves the passed fds to 3, 4, ... and becomes the server.
LAUNCH = """
import fcntl, json, os, sys
passed = json.loads(sys.argv[1])
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 500) for _, fd in passed]
for _, fd in passed:
    os.close(fd)
for i, fd in enumerate(high):
    os.dup2(fd, 3 + i)
    os.close(fd)
if passed:
    os.environ.update(LISTEN_FDS=str(len(passed)), LISTEN_PID=str(os.getpid()),
                      LISTEN_FDNAMES=":".join(name for name, _ in passed))
os.execv(sys.argv[2], sys.argv[2:])
"""


@tap.test("without a service manager it says so")
def no_manager():
    env = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    path = make_image(os.path.join(folder(), "image"), 1)
    run = subprocess.run([SERVER, path + ".sock", path, f"flags={FD_STORE}"], env=env, text=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=20, check=False)
    tap.equal(run.returncode, 1, "exit status")
    tap.contains(run.stderr, "NOTIFY_SOCKET: is not set", "the message")


@tap.test("a VM's files are stored while it lives, under one name")
def stored_and_removed():
    with Manager(64, fill=2) as manager:
        vm = Vm(manager, "--hold")
        until("it is served", manager.running)
        tap.equal(manager.names(), ["infill.1"], "names")
        tap.equal(len(manager.stored), 5, "userfaultfd, state, socket, pidfd, handshake")
        vm.go()
        tap.equal(vm.end(), "ok 64\n", "the VM")
        until("they are removed", lambda: not manager.names())
        tap.equal(manager.stat()["supervisor_pid"], 0, "there is no supervisor")


@tap.test("the daemon is killed again and again: every byte is right")
def killed():
    with Manager(1024, fill=2) as manager:
        vms = [Vm(manager, "--close", "--pause-us", "1000") for _ in range(3)]
        kills = 0
        until("they are served", lambda: len(manager.running()) == 3)
        while any(vm.process.poll() is None for vm in vms) and kills < 40:
            time.sleep(random.uniform(0, 0.05))
            manager.kill()
            manager.start()
            kills += 1
        for vm in vms:
            tap.equal(vm.end(), "ok 1024\n", "a VM")
        tap.true(kills > 3, f"{kills} kills")
        until("nothing is stored", lambda: not manager.names())


@tap.test("a VM with KVM Userfault: its files have numbers, and outlive the daemon")
def userfault():
    with Manager(userfault_vm.PAGES, fill=2) as manager, userfault_vm.Vm(manager).served() as vm:
        vm.check_page(1, 1)
        os.pwrite(vm.memory, b"guest", userfault_vm.PAGE)
        for kill in range(5):
            tap.equal(manager.names(), ["infill.1", "infill.1.0", "infill.1.1", "infill.1.2"], "names")
            manager.kill()
            random.shuffle(manager.stored)
            manager.start()
            tap.equal(vm.notice()[0], userfault_vm.SERVED, "the next daemon serves it")
            vm.check_page(2 + kill, 2 + kill)
        tap.equal(os.pread(vm.memory, 5, userfault_vm.PAGE), b"guest", "what was written")
    until("they are removed", lambda: not manager.names())


@tap.test("files of a VM that a daemon died over are dropped")
def orphans():
    with Manager(userfault_vm.PAGES, fill=2) as manager:
        manager.kill()
        manager.stored.append(("infill.1.0", os.open("/dev/null", os.O_RDONLY)))
        manager.start()
        until("it is removed", lambda: not manager.names())
        with userfault_vm.Vm(manager).served() as vm:
            manager.kill()
            manager.start()
            tap.equal(vm.notice()[0], userfault_vm.SERVED, "the next daemon serves a VM of that number")
            vm.check_page(3, 1)


@tap.test("a VM that was refused is kept by the next process, too")
def refused_is_kept():
    with Manager(64) as manager:
        vm = Vm(manager, "--bad", "--close", "--hold")
        until("it is stored", manager.names)
        manager.kill()
        manager.start()
        vm.go()
        said = vm.end()
        tap.contains(said, "past the image's end", "the answer")
        tap.contains(said, "ok blocked", "its memory")
        until("it is removed", lambda: not manager.names())


@tap.test("the listening socket comes from the service manager")
def activation():
    with Manager(64, activate=True) as manager:
        tap.equal(Vm(manager).end(), "ok 64\n", "a VM")
        manager.kill()
        vm = Vm(manager)  # waits in the backlog
        manager.start()
        tap.equal(vm.end(), "ok 64\n", "a VM that came when nobody was there")
        manager.process.terminate()
        tap.equal(manager.process.wait(20), 0, "exit status")
        tap.true(os.path.exists(manager.socket), "the manager's socket is not removed")


@tap.test("the cache is stored")
def cache():
    with Manager(64, fill=2) as manager:
        manager.options = [f"flags={FD_STORE | SHARED}", "fill=2"]
        manager.kill()
        os.unlink(manager.socket)
        manager.start()
        tap.equal(manager.names(), ["infill.cache"], "names")
        tap.equal(Vm(manager, "--cache").end(), "ok 64\n", "a clone")
        manager.kill()
        manager.start()
        tap.equal(manager.stat()["cache_bytes"], 64 * 4096, "the cache has all")
        tap.equal(Vm(manager, "--cache").end(), "ok 64\n", "another")


@tap.test("a stop waits for VMs that need pages")
def stop():
    with Manager(64, fill=2) as manager:
        vm = Vm(manager, "--hold", "--close")
        until("it is served", manager.running)
        manager.process.send_signal(signal.SIGTERM)
        until("STOPPING=1", lambda: any("STOPPING=1" in text for text in manager.messages))
        time.sleep(0.1)
        tap.equal(manager.process.poll(), None, "the server goes on")
        vm.go()
        tap.equal(vm.end(), "ok 64\n", "the VM")
        tap.equal(manager.process.wait(20), 0, "exit status")


if __name__ == "__main__":
    REASON = need_userfaultfd()
    if REASON:
        tap.skip_all(REASON)
    tap.run()
