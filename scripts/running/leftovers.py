# SPDX-License-Identifier: MIT
"""What a test program leaves behind: processes, mounts, huge pages in the pool."""
import glob
import os
import signal
import time


def read_proc(pid, name):
    """A file of /proc/PID, empty when the process is gone."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def survivors(marker):
    """The living processes that have the marker in their environment, or were left to this one."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        stat = read_proc(pid, "stat").rpartition(b")")[2].split()
        if not stat or stat[0] in (b"Z", b"X"):
            continue
        if int(stat[1]) == os.getpid() or marker in read_proc(pid, "environ").split(b"\0"):
            found.append(int(pid))
    return found


def reap():
    """Collect the orphans that ended, which came to this process as the subreaper.

    Not while a program runs whose status is wanted: only before its start and after its end, and
    in kill_all(), after which subprocess reports a plain 0 for it.
    """
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def describe(pid):
    """What the process is and where it waits, for the log."""
    command = read_proc(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    lines = [f"# process {pid}: {command or read_proc(pid, 'comm').decode(errors='replace')}"]
    for task in sorted(glob.glob(f"/proc/{pid}/task/*")):
        thread = task[len("/proc/"):]
        state = read_proc(thread, "stat").rpartition(b")")[2].split()[:1]
        name = read_proc(thread, "comm").decode(errors="replace").strip()
        where = read_proc(thread, "wchan").decode(errors="replace")
        lines.append(f"#   thread {name}: {b''.join(state).decode()} {where}")
    return "\n".join(lines)


def kill_all(marker):
    """Kill the survivors until there are none; a fork can outrun one pass."""
    deadline = time.monotonic() + 10
    while (left := survivors(marker)) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)
        reap()
    return left


def mounts():
    """The mount points of this namespace."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return {line.split()[4].encode().decode("unicode_escape") for line in file}


def give_back_huge_pages(tmpdir):
    """Take out of the pool what a program that died had added and noted in its TMPDIR; a line for the log."""
    pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    try:
        with open(os.path.join(tmpdir, "hugepages-added"), encoding="utf-8") as file:
            added = int(file.read())
        with open(pool, encoding="utf-8") as file:
            left = max(0, int(file.read()) - added)
        with open(pool, "w", encoding="utf-8") as file:
            file.write(str(left))
    except (OSError, ValueError):
        return ""
    return f"{added} huge pages were left in the pool: given back"
