#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""One QEMU: started, talked to over QMP and the serial console, saved, restored, and ended.

Every wait has a time limit, and its error says what was waited for. To support another
architecture add a line to MACHINES here and one to ARCHES in build.
"""
import contextlib
import ctypes
import fcntl
import glob
import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
OUT = os.path.join(ROOT, "build", "guest")
MEMORY_MIB = 512

# uname -m: program, machine, CPU under TCG, console
MACHINES = {
    "x86_64": ("qemu-system-x86_64", "q35", "max", "ttyS0,115200"),
    "aarch64": ("qemu-system-aarch64", "virt", "max", "ttyAMA0,115200"),
}
OLDEST_QEMU = (9, 0)
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """Carries `what: why`, for a person."""


def die_with_parent():
    """Run in the child before exec: a driver killed with -9 leaves no child behind."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def machine():
    """Return this architecture's line of MACHINES."""
    try:
        return MACHINES[platform.machine()]
    except KeyError:
        raise Failure(f"{platform.machine()}: no guest for this architecture: "
                      f"known are {', '.join(MACHINES)}") from None


def qemu_version():
    """Return QEMU's version as printed; raise Failure where there is none, or it is too old."""
    program = machine()[0]
    if not shutil.which(program):
        raise Failure(f"{program}: not found: install Debian's qemu-system package")
    text = subprocess.run([program, "--version"], capture_output=True, text=True,
                          check=True).stdout.splitlines()[0]
    number = text.split("version ")[1].split(" ")[0]
    if tuple(int(part) for part in number.split(".")[:2]) < OLDEST_QEMU:
        raise Failure(f"{program}: version {number}: 9.0 or later is needed: on Debian 12 "
                      "it is in bookworm-backports")
    return text


def build_guest():
    """Make what of build/guest is missing or old."""
    done = subprocess.run([os.path.join(HERE, "build")], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=600, check=False)
    if done.returncode:
        raise Failure(done.stderr.strip() or f"guest/build: exit {done.returncode}")


class Closed(Failure):
    """QEMU closed its end, most likely because it ended."""


class WorkDirectory:
    """A directory under build/guest for one run; locked for as long as its maker lives."""

    def __init__(self, keep=False):
        os.makedirs(OUT, exist_ok=True)
        self.keep = keep
        self.path = tempfile.mkdtemp(prefix="run-", dir=OUT)
        self.lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()

    def file(self, name):
        """A path inside."""
        return os.path.join(self.path, name)

    def remove(self):
        """Remove it with all that is in it, unless it is to be kept."""
        if self.lock is None:
            return
        if not self.keep:
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)
        self.lock = None


def remove_stale_directories():
    """Remove what drivers that were killed with -9 left: directories that nobody has locked."""
    for path in glob.glob(os.path.join(OUT, "run-*")):
        fd = None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            # Leave a young one alone: its maker may be about to lock it.
            if time.time() - os.fstat(fd).st_mtime > 10:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass
        finally:
            if fd is not None:
                os.close(fd)


class Lines:
    """A stream of lines over a socket that QEMU connects to, read with a deadline."""

    def __init__(self, directory, name):
        self.name = name
        self.data = b""
        self.socket = None
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        # By way of /proc: a path of any length would not fit into sun_path.
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.listener.bind(f"/proc/self/fd/{fd}/{name}")
        finally:
            os.close(fd)
        self.listener.listen(1)

    def accept(self, alive, deadline):
        """Wait for QEMU; @alive raises when it has ended."""
        while not select.select([self.listener], [], [], 0.05)[0]:
            alive()
            if time.monotonic() > deadline:
                raise Failure(f"{self.name}: QEMU did not connect in time")
        self.socket = self.listener.accept()[0]

    def send(self, data):
        """Send all, or fail: QEMU reads its sockets at once unless it hangs."""
        self.socket.settimeout(10)
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Closed(f"{self.name}: write to QEMU: {error.strerror or error}") from None

    def read(self, what, deadline):
        """Return the next line without its end."""
        while b"\n" not in self.data:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                tail = self.data.decode(errors="replace")
                raise Failure(f"{self.name}: timeout while waiting for {what}"
                              + (f", last read {tail!r}" if tail else ""))
            try:
                more = self.socket.recv(65536)
            except OSError:
                more = b""
            if not more:
                raise Closed(f"{self.name}: QEMU closed it while {what} was waited for")
            self.data += more
        line, self.data = self.data.split(b"\n", 1)
        return line.decode(errors="replace").rstrip("\r")

    def close(self):
        """Close what is open."""
        for one in (self.socket, self.listener):
            if one:
                one.close()


class Vm:
    """A guest in its own QEMU process; use as a context manager, which ends it.

    memory      the file that is guest memory (share=on); made by QEMU when it is not there
    incoming    True: starts empty and waits for restore()
    prefix      a command that runs QEMU, such as restore.attach() gives
    work        the directory for its sockets, and in which it runs; None: one of its own
    """

    def __init__(self, memory, incoming=False, prefix=(), env=None, accel="tcg", cpus=1, log=None,
                 work=None):
        self.memory = os.path.abspath(memory)
        self.incoming = incoming
        self.prefix = list(prefix)
        self.env = dict(os.environ, **(env or {}))
        self.accel = accel
        self.cpus = cpus
        self.log = log
        self.work = work
        self.owns_work = work is None
        self.process = None
        self.qemu_pid = self.qemu_pidfd = None
        self.qmp = self.serial = None
        self.spawned_ns = None

    def command(self):
        """QEMU's command line: the same for boot and restore, but for -incoming."""
        program, kind, cpu, console = machine()
        line = [
            program, "-name", "infill-guest", "-nodefaults", "-no-user-config",
            "-display", "none", "-machine", f"{kind},memory-backend=ram",
            "-accel", self.accel, "-cpu", "host" if self.accel == "kvm" else cpu,
            "-smp", str(self.cpus), "-m", str(MEMORY_MIB),
            "-object", f"memory-backend-file,id=ram,size={MEMORY_MIB}M,"
                       f"mem-path={self.memory.replace(',', ',,')},share=on",
            "-kernel", os.path.join(OUT, "vmlinuz"), "-initrd", os.path.join(OUT, "initrd"),
            "-append", f"console={console} quiet nokaslr panic=-1 mitigations=off",
            "-chardev", "socket,id=qmp,path=qmp", "-mon", "chardev=qmp,mode=control",
            "-chardev", "socket,id=serial,path=serial", "-serial", "chardev:serial",
            "-no-reboot",
        ]
        return self.prefix + line + (["-incoming", "defer"] if self.incoming else [])

    def __enter__(self):
        try:
            if self.owns_work:
                self.work = WorkDirectory()
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    def start(self):
        """Spawn QEMU and take its QMP greeting."""
        self.qmp, self.serial = Lines(self.work.path, "qmp"), Lines(self.work.path, "serial")
        with open(self.work.file("stderr"), "wb") as errors:
            self.spawned_ns = time.monotonic_ns()
            self.process = subprocess.Popen(
                self.command(), cwd=self.work.path, env=self.env, stdin=subprocess.DEVNULL,
                stdout=errors, stderr=errors, preexec_fn=die_with_parent,
                # Ctrl-C is for the driver, which ends this in order.
                process_group=0)
        deadline = time.monotonic() + 30
        # QEMU opens its character devices in the order of the command line.
        self.qmp.accept(self.check_alive, deadline)
        self.serial.accept(self.check_alive, deadline)
        peer = self.qmp.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.qemu_pid = int.from_bytes(peer[:4], "little")
        self.qemu_pidfd = os.pidfd_open(self.qemu_pid)
        self.read(self.qmp, "the QMP greeting", deadline)
        self.call("qmp_capabilities")

    def errors(self):
        """What QEMU, or the prefix, wrote to stderr."""
        with open(self.work.file("stderr"), encoding="utf-8", errors="replace") as text:
            return text.read().strip()

    def check_alive(self):
        """Raise when the process has ended, with what it said."""
        status = self.process.poll()
        if status is not None:
            said = self.errors().splitlines()
            raise Failure(f"{self.command()[0]}: ended with status {status}"
                          + (f": {said[-1]}" if said else ""))

    def read(self, lines, what, deadline):
        """Read a line; when QEMU has ended, fail with what it said last."""
        try:
            return lines.read(what, deadline)
        except Closed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
            self.check_alive()
            raise

    def call(self, name, timeout=30, **arguments):
        """Run one QMP command; events that come before its answer are passed over."""
        request = {"execute": name}
        if arguments:
            request["arguments"] = arguments
        self.qmp.send(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + timeout
        while True:
            answer = json.loads(self.read(self.qmp, f"the answer to {name}", deadline))
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise Failure(f"QMP {name}: {answer['error']['desc']}")

    def wait_migration(self, what, timeout):
        """Wait until the migration in or out has ended; poll, as its events are lost to call()."""
        deadline = time.monotonic() + timeout
        while True:
            answer = self.call("query-migrate")
            if answer.get("status") == "completed":
                return
            if answer.get("status") in ("failed", "cancelled"):
                raise Failure(f"{what}: {answer.get('error-desc', answer['status'])}")
            if time.monotonic() > deadline:
                raise Failure(f"{what}: not done after {timeout} s, status {answer.get('status')}")
            time.sleep(0.001)

    def ignore_shared(self):
        """Leave guest memory where it is: in its file."""
        self.call("migrate-set-capabilities",
                  capabilities=[{"capability": "x-ignore-shared", "state": True}])

    def save(self, state):
        """Stop the guest and write its devices' state to file @state; QEMU quits."""
        self.call("stop")
        self.ignore_shared()
        self.call("migrate", uri="file:" + os.path.abspath(state))
        self.wait_migration("save", 60)
        self.quit()

    def restore(self, state):
        """Load the devices' state and let the guest run on."""
        self.ignore_shared()
        self.call("migrate-incoming", uri="file:" + os.path.abspath(state))
        self.wait_migration("restore", 60)
        self.call("cont")

    def expect(self, start, timeout):
        """Return the next serial line that starts with @start; other lines are the kernel's."""
        deadline = time.monotonic() + timeout
        while True:
            line = self.read(self.serial, f"the guest's line `{start}`", deadline)
            if self.log:
                self.log(line)
            if line.startswith(start):
                return line
            if line.startswith(("BAD ", "DEAD ", "unknown ")) or "Kernel panic" in line:
                raise Failure(f"guest: {line}")

    def quit(self):
        """Ask QEMU to end and wait for it."""
        try:
            self.call("quit", timeout=10)
        except Failure:
            pass
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.command()[0]}: still there 20 s after QMP quit") from None

    def kill_process(self):
        """End the process; it may be a prefix that must end its QEMU first."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill_qemu(self):
        """End a QEMU that outlived its prefix; by pidfd, as its number may be another's by now."""
        if self.qemu_pidfd is None:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.qemu_pidfd, signal.SIGKILL)
        os.close(self.qemu_pidfd)
        self.qemu_pidfd = None

    def end(self):
        """End QEMU if it still runs, and remove its sockets."""
        self.kill_process()
        self.kill_qemu()
        for lines in (self.qmp, self.serial):
            if lines:
                lines.close()
        if self.owns_work and self.work:
            self.work.remove()


def probe_kvm():
    """Return (works, why not); tried once per kernel and QEMU: /dev/kvm says nothing."""
    cache = os.path.join(OUT, "kvm.json")
    key = f"{platform.release()} {qemu_version()}"
    try:
        with open(cache, encoding="utf-8") as file:
            known = json.load(file)
        if known["key"] == key:
            return known["works"], known["why"]
    except (OSError, ValueError, KeyError):
        pass
    works, why = try_kvm()
    with open(cache, "w", encoding="utf-8") as file:
        json.dump({"key": key, "works": works, "why": why}, file)
    return works, why


def try_kvm():
    """Boot under KVM until the guest answers; a KVM that runs no Linux guest does not count."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False, "/dev/kvm: not there, or no permission"
    with WorkDirectory() as work:
        try:
            with Vm(work.file("memory"), accel="kvm") as guest:
                guest.expect("filled", 20)
        except Failure as failure:
            return False, str(failure)
    return True, ""
