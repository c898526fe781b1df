# SPDX-License-Identifier: MIT
"""One boot of a machine in QEMU: started, followed over the results' port, ended.

Fills a judge.Record for each case. The lines that it reads are written by init.c: change both
sides together. Every wait has a limit, and QEMU dies with this process, even by kill -9.
"""
import os
import re
import selectors
import shutil
import subprocess
import time

import data
import judge
import vm
from vm import Failure

# Seconds of the host for a machine to say something at its start, and to power off.
BOOT_SECONDS = 60
# What a case may take by the host's clock after its time was up by the machine's.
GRACE_SECONDS = 60
# The machine's clock counts instructions under --icount, and one takes longer than its nanosecond.
ICOUNT_FACTOR = 10


def check_qemu(program):
    """Fail where QEMU is missing or older than what emulates the machines."""
    if not shutil.which(program):
        raise Failure(f"{program}: not found: run scripts/setup lab")
    said = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=False).stdout
    version = re.search(r"version (\d+)\.(\d+)", said)
    if not version or tuple(map(int, version.groups())) < vm.OLDEST_QEMU:
        oldest = ".".join(map(str, vm.OLDEST_QEMU))
        raise Failure(f"{program}: {said.splitlines()[0] if said else 'no version'}: "
                      f"{oldest} or later is needed, which emulates nested virtualization on arm64")


class Limits:
    """How long things may take, in seconds of the host."""

    def __init__(self, kind, icount):
        self.scale = data.KIND_FACTOR[kind]
        self.icount = ICOUNT_FACTOR if icount else 1

    @property
    def boot(self):
        return BOOT_SECONDS * self.scale * self.icount

    def case(self, case):
        return (case.timeout * self.icount + GRACE_SECONDS) * self.scale


class Boot:
    """One start of the machine with some cases."""

    def __init__(self, machine, kernel, folder, options, cases):
        self.machine, self.kernel, self.folder, self.options = machine, kernel, folder, options
        self.cases = {case.name: case for case in cases}
        self.records = {}
        self.current = None
        self.done = False
        self.process = self.pipe = None
        self.deadline = None
        # Why the machine was ended from here.
        self.ended = None
        self.console, self.log = None, ""
        self.pending = b""

    # ---- QEMU's command line

    def append(self):
        """The kernel's command line."""
        boots = {case.boot for case in self.cases.values()}
        # gdb needs addresses as in vmlinux.
        words = [f"console={self.machine.console}", "panic=-1", "printk.devkmsg=on",
                 self.machine.boot, *sorted(boots), "nokaslr" if self.options.gdb else ""]
        return " ".join(filter(None, words))

    def memory(self):
        """MiB: the machine's own, or what a case asks for."""
        return max([self.machine.memory, *(case.memory for case in self.cases.values())])

    def cpus(self):
        """What was asked for, what a case needs, or the machine's own."""
        needed = max((case.cpus.get(self.machine.arch, 0) for case in self.cases.values()), default=0)
        return self.options.cpus or needed or self.machine.cpus

    def accelerator(self):
        """How instructions are run."""
        if self.options.icount:
            return ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]
        return ["-accel", f"tcg,thread={self.machine.threads}"]

    def command(self, initrd, port):
        """The whole command line; the console and the results go to files of this process."""
        line = [*self.machine.command(self.kernel.pages), "-nodefaults", "-no-user-config", "-display", "none",
                *self.accelerator(), "-smp", str(self.cpus()),
                "-m", str(self.memory()), "-no-reboot",
                "-kernel", self.kernel.image, "-initrd", initrd, "-append", self.append(),
                "-chardev", f"file,id=port,path=/dev/fd/{port}",
                "-device", "virtserialport,chardev=port,name=lab"]
        if self.options.shell:
            line += ["-chardev", "stdio,id=console,mux=on,signal=off,logfile=console.log,logappend=on",
                     "-mon", "chardev=console"]
        else:
            line += ["-chardev", "file,id=console,path=console.log,append=on"]
        line += ["-serial", "chardev:console"]
        if self.options.gdb:
            line += ["-S", "-gdb", "unix:gdb,server=on,wait=off"]
        return line

    # ---- running it

    def run(self, initrd, tick):
        """Boot, follow to the end, and yield the Record of each case that was reached when it is whole."""
        with open(os.path.join(self.folder, "console.log"), "a+", encoding="utf-8",
                  errors="replace") as self.console:
            self.console.seek(0, os.SEEK_END)
            try:
                self.start(initrd)
                yield from self.follow(tick)
            except BaseException:
                # Do not wait for it to end by itself.
                self.ended = "was interrupted"
                raise
            finally:
                self.end()
            self.log += self.console.read()
        yield from self.settle(all_of_them=True)

    def settle(self, all_of_them=False):
        """Yield the cases whose part of the log is whole, which it is when the next one has begun."""
        parts, _ = judge.split_log(self.log)
        whole = list(self.records) if all_of_them else list(parts)[:-1]
        for name in whole:
            record = self.records.get(name)
            if record is None or record.settled or not (all_of_them or record.has_result()):
                continue
            record.log = parts.get(name, "")
            if not record.has_result():
                record.lost = f"no result: the machine {self.ended or 'ended'} during it"
            record.settled = True
            yield record

    def start(self, initrd):
        """Start QEMU, with the writing end of the results' pipe."""
        self.pipe, port = os.pipe()
        os.set_inheritable(port, True)
        with open(os.path.join(self.folder, "qemu.log"), "ab") as errors:
            shell = self.options.shell
            try:
                self.process = subprocess.Popen(
                    self.command(initrd, port), cwd=self.folder, pass_fds=[port],
                    stdin=None if shell else subprocess.DEVNULL, stdout=None if shell else errors,
                    stderr=errors, preexec_fn=vm.die_with_parent,
                    # Ctrl-C is for this process, which ends QEMU in order; a shell needs it itself.
                    process_group=None if shell else 0)
            except OSError as error:
                raise Failure(f"{self.machine.qemu[0]}: {error.strerror}") from None
            finally:
                os.close(port)

    def follow(self, tick):
        """Take results until QEMU closes the port or a limit is reached; yield those that are whole."""
        self.wait_until(self.options.limits.boot)
        os.set_blocking(self.pipe, False)
        with selectors.DefaultSelector() as selector:
            selector.register(self.pipe, selectors.EVENT_READ)
            while self.ended is None:
                selector.select(0.5)
                if not self.read():
                    return
                tick(self.current)
                if text := self.console.read():
                    self.log += text
                    yield from self.settle()
                if not self.options.patient and time.monotonic() > self.deadline:
                    self.ended = f"was killed after {self.allowed:.0f} s without a result"
                if time.monotonic() > self.options.deadline:
                    self.ended = "was killed as the time for the whole run was up"

    def wait_until(self, seconds):
        """Allow so long for the next event."""
        self.allowed = seconds
        self.deadline = time.monotonic() + seconds

    def read(self):
        """Take the lines that are there; False when QEMU has closed the port."""
        try:
            more = os.read(self.pipe, 1 << 16)
        except BlockingIOError:
            return True
        *lines, self.pending = (self.pending + more).split(b"\n")
        for line in lines:
            self.line(line.decode(errors="replace"))
        return bool(more)

    def line(self, text):
        """Take one line of init.c's."""
        if text.startswith(" "):
            if self.current:
                self.records[self.current].output.append(text[1:])
                self.options.output(self.current, text[1:])
            return
        word, _, rest = text.partition(" ")
        name, _, rest = rest.partition(" ")
        if word in ("done", "again"):
            self.done, self.current = True, None
            self.wait_until(self.options.limits.boot)
        elif name not in self.cases:
            raise Failure(f"{self.machine.name}: its init said {text!r}, which is not understood")
        else:
            self.event(word, name, rest)

    def event(self, word, name, rest):
        """A case starts or has its result."""
        record = self.records.setdefault(name, judge.Record(name))
        if word == "start":
            self.current = name
            self.wait_until(self.options.limits.case(self.cases[name]))
            return
        if word == "end":
            how, number, micros, taint = rest.split()
            record.end = (how, int(number))
            record.seconds, record.taint = int(micros) / 1e6, int(taint)
        else:
            setattr(record, {"skip": "skip", "fail": "fail"}[word], rest)
        self.current = None
        self.wait_until(self.options.limits.boot)

    def end(self):
        """End QEMU: it is about to end by itself when the port was closed."""
        if self.pipe is not None:
            os.close(self.pipe)
            self.pipe = None
        if self.process is None:
            return
        if self.ended is None:
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.ended = "did not end after it had closed its port"
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    # ---- judging it

    def reasons(self):
        """What is wrong with this boot apart from its cases."""
        found = judge.machine_reasons(self.machine, self.log, self.done)
        if self.ended:
            found.append("it " + self.ended)
        if self.process and self.process.returncode and not self.ended:
            found.append(f"QEMU ended with status {self.process.returncode}: {self.last_error()}")
        return found

    def last_error(self):
        """The last that QEMU wrote to stderr."""
        with open(os.path.join(self.folder, "qemu.log"), encoding="utf-8", errors="replace") as file:
            return (file.read().strip().splitlines() or ["it says nothing"])[-1]
