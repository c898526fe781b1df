# SPDX-License-Identifier: MIT
"""Reads what a test program says in TAP, and knows every way in which that can be wrong."""
import re


class Result:
    """What one program said: counts, and the reasons of what failed and what was skipped."""

    def __init__(self):
        self.passed = 0
        self.failures = []
        self.skips = []


RESULT = re.compile(r"(not )?ok\b *(\d+)? *(?:- *)?(.*)$")
SKIP = re.compile(r"(.*?)(?<!\\)# *skip\b:? *(.*)$", re.IGNORECASE)
PLAN = re.compile(r"1\.\.(\d+) *(?:# *skip\b:? *(.*))?$", re.IGNORECASE)


class Tap:
    """Reads TAP line by line; finish() says what was wrong with the whole."""

    def __init__(self):
        self.result = Result()
        self.plan = None
        self.seen = 0
        self.errors = []
        self.note = ""

    def line(self, text):
        """Take one line of stdout; what is no TAP is for the log only."""
        if match := PLAN.match(text):
            self.take_plan(int(match.group(1)), match.group(2))
        elif match := RESULT.match(text):
            self.take_result(not match.group(1), match.group(2), match.group(3))
        elif text.startswith("Bail out!"):
            self.errors.append(text)
        elif text.strip():
            # cmocka's skip() takes no reason: the test prints it just before.
            self.note = re.sub(r"^[#\s]*(skip(ped)?:\s*)?", "", text, flags=re.IGNORECASE)

    def take_plan(self, count, reason):
        if self.plan is not None:
            self.errors.append("a second plan")
        self.plan = count
        if count == 0:
            if reason:
                self.result.skips.append(("", reason))
            else:
                self.errors.append("a plan of no tests without a reason")

    def take_result(self, good, number, text):
        self.seen += 1
        if number is not None and int(number) != self.seen:
            self.errors.append(f"result {number} where {self.seen} was due")
        skip = SKIP.match(text)
        # A skip of cmocka 1.1.5 is `not ok 1 - # SKIP name`: no name before the mark.
        if not good and not (skip and not skip.group(1)):
            self.result.failures.append(f"not ok {self.seen} - {text}")
        elif skip:
            self.take_skip(skip.group(1).strip(), skip.group(2).strip())
        else:
            self.result.passed += 1
        self.note = ""

    def take_skip(self, name, reason):
        if not name:
            # cmocka prints the test's name where the reason belongs.
            name, reason = reason, self.note
        if reason:
            self.result.skips.append((name, reason))
        else:
            self.result.failures.append(f"skip {self.seen} - {name}: no reason given")

    def finish(self):
        """The result; every error in the whole is one more failure."""
        if self.plan is None:
            self.errors.append("no plan")
        elif self.seen != self.plan:
            self.errors.append(f"{self.seen} results, {self.plan} planned")
        self.result.failures += self.errors
        return self.result
