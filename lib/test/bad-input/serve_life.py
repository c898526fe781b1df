#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The daemon's life: its socket, its worker's deaths, how it ends, what it does when a VM cannot be served."""
import os
import random
import resource
import signal
import socket
import stat
import subprocess
import time

import tap
from serving import PAGE, SERVER, Server, Vm, alive, connect, fds, folder, make_image, need_userfaultfd, until

DEMAND_ONLY = dict(fill=2)
TELL = dict(on_error=1)
SHARED, ONE_VM = 2, 4


def refused(path, image):
    """What a server says that does not start."""
    run = subprocess.run([SERVER, path, image], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         timeout=20, text=True, check=False)
    tap.equal(run.returncode, 1, "exit status")
    return run.stderr


def says(text, part):
    tap.contains(text, part, "the message")


# ---- socket and image ---------------------------------------------------------------------------

@tap.test("only the owner may connect; the socket is removed at the end")
def socket_file():
    with Server(pages=1) as server:
        mode = os.stat(server.socket).st_mode
        tap.equal(stat.S_IMODE(mode), 0o600, "mode")
        tap.equal(server.stop(), 0, "exit status")
        tap.true(not os.path.exists(server.socket), "it is gone")


@tap.test("a second daemon is refused and does not disturb the first")
def second_daemon():
    with Server(pages=16) as server:
        says(refused(server.socket, server.image), "a daemon listens there")
        tap.equal(Vm(server).end(), "ok 16\n", "the first serves")


@tap.test("the socket that a dead daemon left is replaced")
def stale_socket():
    with Server(pages=16) as dead:
        worker = dead.worker()
        dead.process.kill()
        dead.process.wait()
        until("its worker has no VM and ends", lambda: not alive(worker))
        tap.true(os.path.exists(dead.socket), "it was left")
        with Server(pages=16) as server:
            server.stop()
            subprocess.run(["cp", "-a", dead.socket, server.socket], check=False)
            says(refused(os.path.join(server.dir, "no/folder"), server.image), "No such file")
        run = subprocess.Popen([SERVER, dead.socket, dead.image], stdout=subprocess.PIPE)
        tap.equal(run.stdout.read(1), b"r", "another listens")
        run.terminate()
        tap.equal(run.wait(20), 0, "exit status")
        run.stdout.close()


@tap.test("a path that is no socket is not touched")
def path_is_file():
    path = make_image(os.path.join(folder(), "image"), 1)
    says(refused(path, path), "is no socket")
    tap.equal(os.path.getsize(path), PAGE, "size")


@tap.test("a path that is too long")
def path_too_long():
    path = make_image(os.path.join(folder(), "image"), 1)
    says(refused("/tmp/" + "x" * 200, path), "at most 107 bytes")


@tap.test("an image that is not there, no regular file, or not whole pages")
def bad_images():
    path = os.path.join(folder(), "sock")
    says(refused(path, "/nonexistent"), "/nonexistent: cannot open the image")
    says(refused(path, "/dev/null"), "/dev/null")
    os.mkfifo(path + ".fifo")
    says(refused(path, path + ".fifo"), path + ".fifo")
    with open(path + ".odd", "wb") as odd:
        odd.write(b"x" * (PAGE + 1))
    says(refused(path, path + ".odd"), path + ".odd")
    tap.true(not os.path.exists(path), "nothing listened")


# ---- the worker's death --------------------------------------------------------------------------

@tap.test("the worker is killed at any moment: every byte is right")
def kill_worker():
    with Server(pages=2048, **DEMAND_ONLY) as server:
        vms = [Vm(server, "--pause-us", "500") for _ in range(3)]
        killed = 0
        while any(vm.process.poll() is None for vm in vms) and killed < 60:
            worker = server.worker()
            time.sleep(random.uniform(0, 0.03))
            os.kill(worker, signal.SIGKILL)
            killed += 1
        for vm in vms:
            tap.equal(vm.end(), "ok 2048\n", "a VM")
        tap.true(killed >= 10, f"{killed} kills")
        tap.true(server.stat()["restarts"] >= killed - 1, "restarts are counted")


@tap.test("the worker is killed while handshakes come in: none is lost")
def kill_in_handshake():
    with Server(pages=64) as server:
        for _ in range(15):
            worker = server.worker()
            vms = [Vm(server, connected=False) for _ in range(3)]
            time.sleep(random.uniform(0, 0.02))
            os.kill(worker, signal.SIGKILL)
            for vm in vms:
                tap.equal(vm.end(), "connected\nok 64\n", "a VM")


@tap.test("a worker that dies leaves no file and no zombie behind")
def no_leak_by_death():
    with Server(pages=16) as server:
        before = None
        for i in range(12):
            tap.equal(Vm(server).end(), "ok 16\n", "a VM")
            worker = server.worker()
            os.kill(worker, signal.SIGKILL)
            until("there is another", lambda old=worker: server.worker() != old)
            until("it is quiet", lambda: not server.running())
            now = fds(server.pid), fds(server.worker())
            before = before or now
            tap.equal(now, before, f"open files after {i} deaths")
            tap.true(not os.path.exists(f"/proc/{worker}"), "the dead one was reaped")


@tap.test("workers that die at once are started with a growing delay, and VMs go on after it")
def crash_loop():
    with Server(pages=64, **DEMAND_ONLY) as server:
        vm = Vm(server, "--hold")
        until("it is served", server.running)
        end = time.monotonic() + 3
        while time.monotonic() < end and "the next one" not in server.log():
            for child in children(server.pid):
                try:
                    os.kill(child, signal.SIGSEGV)
                except ProcessLookupError:
                    pass
            time.sleep(0.0005)
        says(server.log(), "the next one starts in")
        vm.go()
        tap.equal(vm.end(), "ok 64\n", "the VM")


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as text:
        return [int(child) for child in text.read().split()]


@tap.test("a worker that is stopped holds up no client")
def stopped_worker():
    with Server(pages=64) as server:
        worker = server.worker()
        os.kill(worker, signal.SIGSTOP)
        vms = [Vm(server) for _ in range(3)]
        with connect(server) as bad:
            bad.sendall(b"?")
            says(bad.recv(1000).decode(), "is not JSON")
        os.kill(worker, signal.SIGCONT)
        for vm in vms:
            tap.equal(vm.end(), "ok 64\n", "a VM")


@tap.test("the supervisor is killed: the worker serves its VMs to their end, then ends")
def kill_supervisor():
    with Server(pages=1024, **DEMAND_ONLY) as server:
        worker = server.worker()
        vm = Vm(server, "--hold", "--close")
        until("it is served", server.running)
        server.process.kill()
        server.process.wait()
        vm.go()
        tap.equal(vm.end(), "ok 1024\n", "the VM")
        until("the worker ends", lambda: not alive(worker))


# ---- the end --------------------------------------------------------------------------------------

@tap.test("a stop waits for VMs that need pages, and takes no more")
def stop_waits():
    with Server(pages=256, **DEMAND_ONLY) as server:
        vm = Vm(server, "--hold", "--close")
        until("it is served", server.running)
        worker = server.worker()
        server.process.send_signal(signal.SIGTERM)
        until("the socket is gone", lambda: not os.path.exists(server.socket))
        server.logged("1 VM still needs pages")
        os.kill(worker, signal.SIGKILL)
        time.sleep(0.1)
        tap.equal(server.process.poll(), None, "the server goes on")
        vm.go()
        tap.equal(vm.end(), "ok 256\n", "the VM")
        tap.equal(server.process.wait(20), 0, "exit status")


@tap.test("a stop does not wait for VMs that have all their pages")
def stop_resident():
    with Server(pages=256) as server:
        vm = Vm(server, "--hold", "--close")
        until("all is there", lambda: server.stat()["vms"][0]["times"]["resident_ns"])
        tap.equal(server.stop(), 0, "exit status")
        vm.go()
        tap.equal(vm.end(), "ok 256\n", "the VM")


@tap.test("a second stop kills VMs that need pages")
def stop_twice_kill():
    with Server(pages=256, **DEMAND_ONLY) as server:
        vm = Vm(server, "--hold", "--close")
        until("it is served", server.running)
        tap.equal(server.stop(times=2), 0, "exit status")
        tap.equal(vm.process.wait(20), -signal.SIGKILL, "the VM")
        says(server.log(), "stopped before it had all its pages: killed")


@tap.test("a second stop tells VMs that need pages, with on_error tell")
def stop_twice_tell():
    with Server(pages=256, **DEMAND_ONLY, **TELL) as server:
        vm = Vm(server, "--wait-error")
        until("it is served", server.running)
        tap.equal(server.stop(times=2), 0, "exit status")
        said = vm.end()
        says(said, "stopped before this VM had all its pages")
        says(said, "ok ")


@tap.test("a second stop ends a daemon whose worker does not obey")
def stop_twice_stuck():
    with Server(pages=256, **DEMAND_ONLY) as server:
        vm = Vm(server, "--hold", "--close")
        until("it is served", server.running)
        os.kill(server.worker(), signal.SIGSTOP)
        tap.equal(server.stop(times=2), 0, "exit status")
        tap.equal(vm.process.wait(20), -signal.SIGKILL, "the VM")


@tap.test("ONE_VM: the daemon ends with its VM")
def one_vm():
    with Server(pages=64, flags=ONE_VM) as server:
        tap.equal(Vm(server).end(), "ok 64\n", "the VM")
        tap.equal(server.process.wait(20), 0, "exit status")
        tap.true(not os.path.exists(server.socket), "the socket is gone")


# ---- VMs that cannot be served ------------------------------------------------------------------------

def change_image(server):
    """The image grows: it is not the one that was saved."""
    with open(server.image, "ab") as image:
        image.write(b"x" * PAGE)


@tap.test("the image changes: the VM is killed")
def image_changes_kill():
    with Server(pages=256, **DEMAND_ONLY) as server:
        vm = Vm(server, "--hold", "--close")
        until("it is served", server.running)
        change_image(server)
        vm.go()
        tap.equal(vm.process.wait(20), -signal.SIGKILL, "the VM")
        server.logged("killed")
        vm.kill()


@tap.test("the image changes: the VM is told and reads no zeros, with on_error tell")
def image_changes_tell():
    with Server(pages=256, **DEMAND_ONLY, **TELL) as server:
        extra = Vm(server, "--hold")
        vm = Vm(server, "--close", "--wait-error")
        until("they are served", lambda: len(server.running()) == 2)
        change_image(server)
        until("the first notices", lambda: extra.go() or "failed" in server.log())
        # The other one hears of it when a worker takes it up again.
        os.kill(server.worker(), signal.SIGKILL)
        said = vm.end()
        says(said, "told")
        says(said, "ok blocked")
        extra.kill()


@tap.test("the image changed while no worker had it: new VMs are refused")
def image_changed_between():
    with Server(pages=64) as server:
        worker = server.worker()
        change_image(server)
        os.kill(worker, signal.SIGKILL)
        server.logged("has changed since the daemon was started")
        vm = Vm(server, "--wait-error", "--close")
        said = vm.end()
        says(said, "has changed since")
        says(said, "ok blocked")


# ---- cache and limits -----------------------------------------------------------------------------------

@tap.test("clones of one cache, the worker being killed between them")
def cache():
    with Server(pages=256, flags=SHARED, **DEMAND_ONLY) as server:
        first = Vm(server, "--cache", "--hold")
        tap.equal(Vm(server, "--cache").end(), "ok 256\n", "a clone")
        tap.equal(server.stat()["cache_bytes"], 256 * PAGE, "the cache has all")
        os.kill(server.worker(), signal.SIGKILL)
        tap.equal(Vm(server, "--cache").end(), "ok 256\n", "a clone after a death")
        first.go()
        tap.equal(first.end(), "ok 256\n", "a clone from before")


@tap.test("a low RLIMIT_NOFILE lowers max_vms, and clients wait in place of being lost")
def few_files():
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (420, 420))
    path = folder()
    image = make_image(os.path.join(path, "image"), 16)
    process = subprocess.Popen([SERVER, os.path.join(path, "sock"), image], preexec_fn=limit,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    tap.equal(process.stdout.read(1), "r", "it listens")
    process.terminate()
    _, log = process.communicate(timeout=20)
    says(log, "max_vms is lowered from 256 to 10")


@tap.test("what is only kept is bounded: who connects then waits until there is room")
def kept_is_bounded():
    with Server(pages=16, max_vms=2) as server:
        kept = [Vm(server, "--bad", "--close", "--hold") for _ in range(2)]
        until("both are refused", lambda: server.log().count("refused") == 2)
        vm = Vm(server, "--close", "--hold")
        time.sleep(0.3)
        tap.true("16 MiB" not in server.log() and "0 MiB" not in server.log(), "it waits")
        kept[0].kill()
        server.logged("0 MiB in 1 region")
        vm.go()
        tap.equal(vm.end(), "ok 16\n", "the VM that waited")
        kept[1].kill()


@tap.test("a worker whose supervisor was killed ends by SIGTERM, and kills VMs that need pages")
def orphan_stops():
    with Server(pages=64, **DEMAND_ONLY) as server:
        worker = server.worker()
        vm = Vm(server, "--hold", "--close")
        until("it is served", server.running)
        os.kill(worker, signal.SIGTERM)
        server.stat()
        server.process.kill()
        server.process.wait()
        server.logged("the supervisor is gone")
        os.kill(worker, signal.SIGTERM)
        tap.equal(vm.process.wait(20), -signal.SIGKILL, "the VM")
        until("the worker ends", lambda: not alive(worker))
        vm.kill()


@tap.test("a connection that sends nothing and closes leaves no word in the log")
def quiet_probe():
    with Server(pages=1) as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(server.socket)
        server.stat()
        tap.true("refused" not in server.log(), "nothing is logged")


if __name__ == "__main__":
    REASON = need_userfaultfd()
    if REASON:
        tap.skip_all(REASON)
    tap.run()
