# SPDX-License-Identifier: MIT
"""Lanes: processes that run a test program at a time each, side by side.

The first lane runs the programs that want the machine for themselves, one after the other, and when
there are none left those that do not mind company (Program.beside); the other lanes only these. A
lane is a process of its own because what a program leaves behind is told by whose orphans it
becomes, and by which mounts are new: so each lane adopts orphans of its own, and each but the first
has mounts of its own.
"""
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal

from execution import Run
from tapreader import Result

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x00020000
MS_PRIVATE_REC = 1 << 18 | 1 << 14
# What an emulated machine takes, of memory: no more of them at once than fit.
MEMORY_OF_LANE = 4 << 30

FORK = multiprocessing.get_context("fork")


def default_count():
    """As many as there are CPUs and memory for, one at least."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":") for line in file)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return max(1, min(len(os.sched_getaffinity(0)), available // MEMORY_OF_LANE))


class Lane:
    """One of them, seen from the process that started it."""

    def __init__(self, number, root, build):
        self.number = number
        self.program = None
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(theirs, self.pipe, number, root, build))
        self.process.start()
        theirs.close()

    def start(self, program):
        """Give it a program; wait until `pipe` can be read, then call take()."""
        self.program = program
        self.pipe.send(program)

    def take(self):
        """The Result of its program, and whether the lane can go on."""
        self.program = None
        try:
            return self.pipe.recv(), True
        except (EOFError, ConnectionError):
            self.process.join()
            lost = Result()
            lost.failures.append(f"the runner's own process for it ended: status {self.process.exitcode}")
            return lost, False


def serve(pipe, theirs, number, root, build):
    """What a lane does: run what comes, until nothing comes any more."""
    theirs.close()
    libc = ctypes.CDLL(None)
    # However the runner ends, kill -9 too, this process ends what it runs.
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != multiprocessing.parent_process().pid:
        return
    # Ctrl-C comes to all: the runner says who is to end, once. Not SIG_IGN, which programs would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Who may not have mounts of its own may not mount either, nor may the others.
    if number > 0 and libc.unshare(CLONE_NEWNS) == 0:
        libc.mount(b"none", b"/", None, MS_PRIVATE_REC, None)
    while True:
        try:
            program = pipe.recv()
        except EOFError:
            return
        pipe.send(Run(program, root, build).go())


class Lanes:
    """All lanes; `with` ends them and what they run."""

    def __init__(self, programs, count, root, build):
        self.alone = [program for program in programs if not program.beside]
        self.beside = [program for program in programs if program.beside]
        useful = min(count, len(self.beside) + bool(self.alone))
        self.lanes = [Lane(number, root, build) for number in range(max(1, useful))]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for lane in self.lanes:
            lane.pipe.close()
            if lane.program:
                lane.process.terminate()
        for lane in self.lanes:
            lane.process.join()

    def next(self, lane):
        """The program that a lane is to run now, None when there is none for it."""
        queue = self.alone if lane.number == 0 and self.alone else self.beside
        return queue.pop(0) if queue else None

    def results(self, begin, tick):
        """Yield (program, Result) as they end; BEGIN is called with each that starts, TICK each second."""
        idle = list(self.lanes)
        while self.lanes:
            for lane in idle:
                if program := self.next(lane):
                    begin(program)
                    lane.start(program)
            idle = []
            busy = {lane.pipe: lane for lane in self.lanes if lane.program}
            if not busy:
                break
            for pipe in multiprocessing.connection.wait(busy, 1.0):
                lane = busy[pipe]
                program = lane.program
                result, goes_on = lane.take()
                if goes_on:
                    idle.append(lane)
                else:
                    self.lanes.remove(lane)
                yield program, result
            tick()
        for program in self.alone + self.beside:
            lost = Result()
            lost.failures.append("not run: the runner's own process for it had ended")
            yield program, lost
