# SPDX-License-Identifier: MIT
"""One run of one test program: its log, its time limit, its TMPDIR, and what it leaves behind."""
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
import uuid

from leftovers import describe, give_back_huge_pages, kill_all, mounts, reap, survivors
from tapreader import Tap

# How long a process may take to vanish after its program ended; QEMU under load takes a while.
GRACE = 5.0
# A Unix socket's path has 108 bytes; leave half of them to the test.
TMPDIR_MAX = 54


def log_of(program, build):
    """Where all that a program prints is kept."""
    return os.path.join(build, "log", "check", program.group, program.name + ".log")


class Run:
    """One run of one program, its log, its TMPDIR and what it leaves behind."""

    def __init__(self, program, root, build):
        self.program, self.root, self.build = program, root, build
        self.marker = f"INFILL_CHECK_ID={uuid.uuid4().hex}"
        self.tap = Tap()
        log = log_of(program, build)
        os.makedirs(os.path.dirname(log), exist_ok=True)
        self.log = open(log, "wb", buffering=0)

    def make_tmpdir(self):
        """A folder below build/tmp, or below /tmp where that path is too long for a socket."""
        base = os.path.join(self.build, "tmp")
        os.makedirs(base, exist_ok=True)
        if len(base) > TMPDIR_MAX:
            base = None
        path = tempfile.mkdtemp(prefix="t", dir=base)
        os.chmod(path, 0o755)
        return path

    def environment(self, tmpdir):
        name, _, value = self.marker.partition("=")
        env = {key: text for key, text in os.environ.items() if not key.startswith(("MAKE", "INFILL_CHECK_ID"))}
        env.update({
            name: value, "TMPDIR": tmpdir, "LC_ALL": "C", "CMOCKA_MESSAGE_OUTPUT": "TAP",
            "INFILL_ROOT": self.root, "INFILL_BUILD": self.build,
            "PYTHONPATH": os.path.join(self.root, "scripts"), "PYTHONDONTWRITEBYTECODE": "1",
        })
        env.update(self.program.env)
        return env

    def go(self):
        """Run it and return the Result."""
        tmpdir = self.make_tmpdir()
        before = mounts()
        try:
            status = self.execute(tmpdir)
        except BaseException:
            # Interrupted: do not wait for what would have ended by itself.
            kill_all(self.marker.encode())
            raise
        finally:
            left = self.clean_processes()
            stuck = self.clean_mounts(before, tmpdir)
            if text := give_back_huge_pages(tmpdir):
                self.log.write(f"# check: {text}\n".encode())
            if not stuck:
                shutil.rmtree(tmpdir, ignore_errors=True)
        # A program that said `not ok` is expected to exit non-zero.
        if status and not (status.startswith("exit status") and self.tap.result.failures):
            self.error(status)
        for text in left + stuck:
            self.error(text)
        self.log.close()
        return self.tap.finish()

    def error(self, text):
        self.tap.errors.append(text)
        self.log.write(f"# check: {text}\n".encode())

    def execute(self, tmpdir):
        """Run the program to its end; the reason when that was not a plain exit 0."""
        try:
            child = subprocess.Popen(
                self.program.command, cwd=self.root, env=self.environment(tmpdir),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log,
                start_new_session=True)
        except OSError as error:
            return f"cannot be started: {error.strerror}"
        ended = self.follow(child, time.monotonic() + self.program.timeout)
        child.stdout.close()
        if not ended:
            for pid in survivors(self.marker.encode()):
                self.log.write((describe(pid) + "\n").encode())
            kill_all(self.marker.encode())
        status = child.wait()
        if not ended:
            return f"no end after {self.program.timeout} s"
        if status < 0:
            return f"ended by signal {signal.Signals(-status).name}"
        return f"exit status {status}" if status else None

    def follow(self, child, deadline):
        """Read stdout until the child ends, however long its own children keep the pipe open."""
        pipe, pending = child.stdout.fileno(), b""
        os.set_blocking(pipe, False)
        end = os.pidfd_open(child.pid)
        ended = False
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            selector.register(end, selectors.EVENT_READ)
            while not ended and (left := deadline - time.monotonic()) > 0:
                # Not longer at once: Python does not see a signal that comes just before it waits.
                ready = [key.fd for key, _ in selector.select(min(left, 1.0))]
                ended = end in ready
                pending, closed = self.drain(pipe, pending)
                if closed and pipe in selector.get_map():
                    selector.unregister(pipe)
        os.close(end)
        if pending:
            self.tap.line(pending.decode(errors="replace"))
        return ended

    def drain(self, pipe, pending):
        """Read what is there; the unfinished line, and whether the pipe was closed."""
        while True:
            try:
                data = os.read(pipe, 65536)
            except BlockingIOError:
                return pending, False
            if not data:
                return pending, True
            self.log.write(data)
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self.tap.line(line.decode(errors="replace").rstrip("\r"))

    def clean_processes(self):
        """Wait a moment for what is ending by itself, then kill the rest and say what it was."""
        marker, deadline = self.marker.encode(), time.monotonic() + GRACE
        reap()
        while (left := survivors(marker)) and time.monotonic() < deadline:
            time.sleep(0.05)
            reap()
        reasons = []
        for pid in left:
            text = describe(pid)
            self.log.write((text + "\n").encode())
            reasons.append("left behind: " + text.splitlines()[0][2:])
        if kill_all(marker):
            reasons.append("left behind: processes that cannot be killed")
        return reasons

    def clean_mounts(self, before, tmpdir):
        """Unmount what was mounted in the program's own folder; report every new mount."""
        new = sorted(mounts() - before, key=len, reverse=True)
        for path in new:
            if path.startswith(tmpdir + "/") or path == tmpdir:
                subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL, check=False)
        return [f"left behind: mount {path}" for path in new]
