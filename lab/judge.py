# SPDX-License-Identifier: MIT
"""Says what a run was worth, from what the case printed and what the kernel's log says.

Nothing counts as a success but a positive sign: see case_verdict() for a case, machine_reasons() for
the machine. To have another kind of report in the kernel's log count, add it to REPORTS. Works on
text alone, and is tested on recorded text by test/unit/judge_test.py.
"""
import itertools
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "scripts", "running"))
# pylint: disable=wrong-import-position
import tapreader

KSFT_SKIP = 4
START = re.compile(r"lab: start (\S+)$")
POWER_OFF = re.compile(r"lab: power off$")
# The kernel's last words when it powers off in order.
POWERED_OFF = re.compile(r"reboot: (Power down|Restarting system)")
# A line of printk: "[    1.234567] text", with the caller behind the time in debug kernels.
STAMP = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?")

# WARNING: and BUG: begin what lockdep, KASAN, KCSAN, RCU and the checks of atomic sections say. The
# others are there for reports without one of these, or of which that line was lost.
REPORTS = [re.compile(text) for text in (
    r"\bWARNING: ",
    r"\bBUG: ",
    r"kernel BUG at",
    r"\bOops\b",
    r"Internal error:",
    r"Kernel panic",
    r"Unable to handle kernel",
    r"general protection fault",
    r"cut here \]",
    r"Call [Tt]race:",
    r"\bUBSAN: ",
    r"possible (circular|recursive|irq lock inversion)",
    r"inconsistent lock state",
    r"lockdep is turned off",
    r"blocked for more than \d+ seconds",
    r"\bINFO: rcu_",
    r"refcount_t: ",
    r"list_(add|del) corruption",
    r"(nVHE hyp|HYP) (panic|BUG)",
    r"Invalid host exception to nVHE hyp",
    r"Unsupported FSC",
    r"Out of memory: Killed",
    r"suspected memory leaks",
)]

# Where TEST_ASSERT(), the harness of kselftests or CHECK() says that an assertion failed: its place.
ASSERTION = re.compile(r"[# ]*(\S+\.[chS]:\d+:|line \d+: )")
# What helps nobody there: the process, the callers, the harness' own words.
IDLE = re.compile(r"[# ]*(pid=\d+ tid=|\d+\t|\w+: Test (failed|terminated)|(RUN|OK|FAIL|SKIP) |(FAILED|Totals): )|[# ]*$")
# So many lines from the place on are looked at, or so many before the end where there is none.
MOST, LAST = 8, 2

# How the machine's init begins to say where the threads of a case are that it has to kill.
STACKS = re.compile(r"# thread \d+ \(")


def reports(text, allows=()):
    """The lines of a part of the kernel's log that report something wrong."""
    found = []
    for line in text.splitlines():
        line = STAMP.sub("", line.rstrip("\r"))
        if any(one.search(line) for one in REPORTS) and not any(one.search(line) for one, _ in allows):
            found.append(line.strip())
    return found


def split_log(text):
    """({case: its part}, the machine's part) of a boot's log.

    What comes after a case's end and before the next start is still that case's: a report may be
    late. The machine's part is what came before the first case, and the power-off.
    """
    parts, machine, current = {}, [], None
    for line in text.splitlines():
        match = START.search(line)
        if match:
            current = match.group(1)
            parts[current] = []
        elif POWER_OFF.search(line):
            current = None
        (machine if current is None else parts[current]).append(line)
    return {name: "\n".join(lines) for name, lines in parts.items()}, "\n".join(machine)


class Ktap(tapreader.Tap):
    """Reads what a selftest prints; most of KVM's print no TAP at all, which is no error here."""

    def __init__(self):
        super().__init__()
        # What was said since the last result.
        self.said = []

    def line(self, text):
        self.said.append(text)
        super().line(text)

    def take_result(self, good, number, text):
        failures = len(self.result.failures)
        super().take_result(good, number, text)
        if len(self.result.failures) > failures:
            self.result.failures[-1] += assertion(self.said[:-1])
        self.said = []

    def take_skip(self, name, reason):
        # kselftest.h prints `ok 1 # SKIP reason`, without a name.
        self.result.skips.append((name, reason or self.note or "no reason given"))

    def finish(self):
        if self.plan is None and self.seen == 0:
            self.result.failures += self.errors
            return self.result
        return super().finish()


def assertion(said):
    """What failed, and with what values, if a test said so: for a log that is cut to one line."""
    lines = list(itertools.dropwhile(lambda line: not ASSERTION.match(line), said))[:MOST]
    lines = lines or [line for line in said if line.startswith("# ") and not IDLE.match(line)][-LAST:]
    return "".join(f": {line.strip('# ')}" for line in lines if not IDLE.match(line))


class Record:
    """What became of one case in one boot: filled by the emulator, read by case_verdict()."""

    def __init__(self, name):
        self.name = name
        self.output = []
        # How it ended: (exit, signal, timeout or flood, number); None while it has no result.
        self.end = None
        self.seconds = 0.0
        self.taint = 0
        # What the machine's init said instead of running it.
        self.skip = self.fail = None
        # Why the machine gave no result, and its log while the case ran.
        self.lost = None
        self.log = ""
        # True when nothing will be added.
        self.settled = False

    def has_result(self):
        """True when the machine said what became of it."""
        return self.end is not None or self.skip is not None or self.fail is not None


class Verdict:
    """ok, skip or fail; why; the results inside the case as (TAP line)s; and whether the kernel's log
    reports something, which weighs more than what the case says."""

    def __init__(self, kind, reasons, nested=(), reported=False):
        self.kind, self.reasons, self.nested, self.reported = kind, reasons, list(nested), reported

    def __repr__(self):
        return f"{self.kind}: {'; '.join(self.reasons)}"


def last_words(output):
    """What a case that hung said last, which often names the test in it; init's stacks come after that."""
    said = list(itertools.takewhile(lambda line: not STACKS.match(line), output))
    last = next((" ".join(line.split()) for line in reversed(said) if line.strip()), "")
    return f", its last line: {last}" if last else ""


def why_ended(record):
    """What is wrong with the way in which the case ended; empty when nothing is."""
    if record.fail:
        return [record.fail]
    if record.end is None:
        return [record.lost or "no result"]
    how, value = record.end
    if how == "timeout":
        return [f"no end after {value} s: killed{last_words(record.output)}"]
    if how == "flood":
        return ["it printed too much: killed"]
    if how == "signal":
        return [f"ended by signal {value}"]
    if value == 127:
        return ["could not be started: " + " ".join(record.output[-1:])]
    return [f"exit status {value}"] if value not in (0, KSFT_SKIP) else []


def skip_reason(record, tap):
    """Why a case that skipped itself did; None when it ran."""
    if record.end == ("exit", KSFT_SKIP):
        if tap.skips:
            return tap.skips[-1][1]
        last = [line for line in record.output if line.strip()][-1:]
        return " ".join(last).strip() or "it gives no reason"
    if tap.skips and not tap.passed:
        return tap.skips[-1][1]
    return None


def case_verdict(record, allows=()):
    """Judge one case: every reason is kept, since a timeout often has its cause in the log."""
    if record.skip:
        return Verdict("skip", [record.skip])
    reader = Ktap()
    for line in record.output:
        reader.line(line)
    tap = reader.finish()
    nested = [line for line in record.output
              if tapreader.PLAN.match(line) or (reader.plan is not None and tapreader.RESULT.match(line))]
    found = reports(record.log, allows)
    reasons = why_ended(record)
    if reasons and reasons[0].startswith("exit status"):
        # A program that said `not ok` is expected to exit non-zero.
        said_so = any(text.startswith("not ok") for text in tap.failures)
        reasons = [] if said_so else [reasons[0] + assertion(reader.said)]
    reasons += tap.failures
    if found:
        more = f" and {len(found) - 1} lines more" if len(found) > 1 else ""
        reasons.insert(0, f"the kernel's log has: {found[0]}{more}")
    elif record.taint:
        reasons.insert(0, f"the kernel became tainted ({record.taint}), and its log does not say why")
    if reasons:
        return Verdict("fail", reasons, nested, bool(found or record.taint))
    reason = skip_reason(record, tap)
    return Verdict("skip", [reason], nested) if reason else Verdict("ok", [], nested)


def machine_reasons(machine, log, done):
    """What is wrong with a boot apart from its cases: empty for a machine that came and went in order."""
    _, own = split_log(log)
    reasons = [f"the kernel's log has: {line}" for line in reports(own, machine.allows)[:3]]
    for pattern, why in machine.says:
        if not pattern.search(log):
            reasons.append(f"its kernel did not say `{pattern.pattern}`: {why}")
    if not done:
        reasons.append("it did not reach its end")
    elif not POWERED_OFF.search(own):
        reasons.append("it did not say that it powered off")
    return reasons
