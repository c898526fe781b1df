# SPDX-License-Identifier: MIT
"""Compares the kernel with the series with its base: what passes there has to pass here.

Both run the base's own selftest programs, as upstream has them. The base's results are kept in
build/lab/baseline for as long as the kernel, the program and the case stay the same; a change of
what a case is or of how it is judged runs it again.
"""
import hashlib
import json
import os

import initrd
import judge

# The files whose change makes kept results void.
INPUTS = ("init.c", "data.py", "emulator.py", "initrd.py", "judge.py")


def digest_of(*parts):
    """One number for files (by path) and texts."""
    digest = hashlib.sha256()
    for part in parts:
        if os.path.isabs(part):
            with open(part, "rb") as file:
                part = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


class Store:
    """The base's results on one machine."""

    def __init__(self, machine, kernel, options):
        name = "-".join(filter(None, [machine.name, options.kernel, options.pages,
                                      "icount" if options.icount else None]))
        self.folder = os.path.join(initrd.OUT, "baseline", name)
        self.kernel = kernel
        here = [os.path.join(initrd.HERE, name) for name in INPUTS]
        here.append(os.path.join(initrd.HERE, "machines", machine.name))
        self.common = digest_of(kernel.image, *here)
        os.makedirs(self.folder, exist_ok=True)

    def path(self, case):
        """Where the result of a case is."""
        return os.path.join(self.folder, case.name + ".json")

    def key(self, case):
        """What the result depends on."""
        program = [] if initrd.missing_program(case, self.kernel) else [
            initrd.program(case, self.kernel)]
        return digest_of(self.common, case.boot, str(case.memory), case.plan(case.timeout), *program)

    def get(self, case):
        """The Verdict that is kept; None when there is none that holds."""
        try:
            with open(self.path(case), encoding="utf-8") as file:
                kept = json.load(file)
        except (OSError, ValueError):
            return None
        if kept.get("key") != self.key(case):
            return None
        return judge.Verdict(kept["kind"], kept["reasons"], reported=kept["reported"])

    def put(self, case, verdict):
        """Keep a Verdict."""
        content = {"key": self.key(case), "kind": verdict.kind, "reasons": verdict.reasons,
                   "reported": verdict.reported}
        initrd.GUEST_BUILD.replace(self.path(case), (json.dumps(content, indent=1) + "\n").encode())


def base_verdicts(machine, kernel, cases, options, new_run, tick):
    """{case name: Verdict} of the base, run where it is not known, and what its machine did wrong."""
    store = Store(machine, kernel, options)
    known = {case.name: store.get(case) for case in cases}
    todo = [case for case in cases if known[case.name] is None]
    if not todo:
        return known, []
    run = new_run(machine, kernel, kernel, options)
    for case, verdict, _ in run.verdicts(todo, tick):
        store.put(case, verdict)
        known[case.name] = verdict
    return known, run.reasons


def judge_pair(base, series):
    """What the two verdicts of one case say about the series."""
    if base.kind == "ok" and series.kind == "skip":
        return judge.Verdict("fail", ["it runs without the series and is skipped with it: "
                                      + series.reasons[0]])
    if base.kind == "ok" or series.kind != "fail":
        return series
    if base.kind == "skip":
        return judge.Verdict("fail", ["it is skipped without the series and fails with it: "
                                      + series.reasons[0], *series.reasons[1:]])
    if series.reported and not base.reported:
        return judge.Verdict("fail", ["it fails without the series too, but only with it the kernel reports "
                                      "something: " + series.reasons[0], *series.reasons[1:]])
    return judge.Verdict("skip", ["fails without the series too: " + base.reasons[0]])


def compare(machine, kernel, cases, options, new_run, new_report):
    """Run both and print KTAP; the exit status."""
    without = initrd.Kernel(kernel.arch, kernel.kind, kernel.pages, base=True)
    without.require()
    kernel.require()
    run = new_run(machine, kernel, without, options)
    out = new_report(options.verbose, run.folder.shown + "/console.log")
    out.begin(f"{machine.name}, kernel {kernel.name} compared with {without.name}, "
              f"logs in {run.folder.shown}", len(cases) + 2)
    base, reasons = base_verdicts(machine, without, cases, options, new_run, out.tick)
    out.result("base machine", judge.Verdict("fail" if reasons else "ok", reasons))
    for case, verdict, record in run.verdicts(cases, out.tick):
        out.result(case.name, judge_pair(base[case.name], verdict), record.output,
                   record.seconds if record.end else None)
    out.result("machine", judge.Verdict("fail" if run.reasons else "ok", run.reasons))
    return out.finish()
