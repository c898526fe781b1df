#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""TAP for tests written in Python: `import tap` (check puts this folder on PYTHONPATH).

    import tap

    @tap.test
    def image_is_unchanged():
        tap.equal(after, before, "the image's checksum")
        tap.true(os.path.exists(path), f"{path} is there")

    @tap.test
    def huge_pages():
        tap.skip("no huge pages here")      # this test; the rest goes on

    tap.run()                               # plan, results, exit status

Each function is one result. An assertion or any exception fails it, with its traceback in the log;
the other tests still run. `tap.skip_all(reason)` before run() skips the whole program. A test
function may be given a name of its own: `@tap.test("a truncated image is refused")`.
"""
import sys
import traceback

TESTS = []


class Skip(Exception):
    """Carries the reason why a test cannot run here."""


def test(function_or_name):
    """Register a test, named after its function or by the text given."""
    if callable(function_or_name):
        TESTS.append((function_or_name.__name__.replace("_", " "), function_or_name))
        return function_or_name

    def register(function):
        TESTS.append((function_or_name, function))
        return function
    return register


def add(name, function, *arguments, **options):
    """Register FUNCTION called with arguments: one row of a table of tests."""
    TESTS.append((name, lambda: function(*arguments, **options)))


def skip(reason):
    """End this test as skipped."""
    raise Skip(reason)


def skip_all(reason):
    """End the program as skipped."""
    print(f"1..0 # SKIP {reason}", flush=True)
    sys.exit(0)


def diag(text):
    """Say something for the log."""
    for line in str(text).splitlines() or [""]:
        print(f"# {line}", flush=True)


def true(value, what):
    """Fail unless VALUE is true."""
    if not value:
        raise AssertionError(what)


def equal(got, expected, what):
    """Fail unless the two are equal."""
    if got != expected:
        raise AssertionError(f"{what}: is {got!r}, should be {expected!r}")


def contains(text, part, what):
    """Fail unless PART is in TEXT."""
    if part not in text:
        raise AssertionError(f"{what}: {part!r} is not in {text!r}")


def one(number, name, function):
    """Run one test and print its result; whether it did not fail."""
    # A # in the name would read as a directive.
    name = name.replace("#", "\\#")
    try:
        function()
    except Skip as reason:
        print(f"ok {number} - {name} # SKIP {reason}", flush=True)
    except Exception as error:  # pylint: disable=broad-except
        print(f"not ok {number} - {name}", flush=True)
        diag(error)
        diag(traceback.format_exc())
        return False
    else:
        print(f"ok {number} - {name}", flush=True)
    return True


def run():
    """Run every registered test and exit: 0 when none failed."""
    print(f"1..{len(TESTS)}", flush=True)
    good = [one(number, *entry) for number, entry in enumerate(TESTS, 1)]
    sys.exit(0 if all(good) else 1)
