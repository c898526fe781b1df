#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""Every file has its licence line, every link leads somewhere, and no file names this machine.

To let a kind of file go without a licence line, because it has no comments, add it to NO_COMMENTS.
"""
import glob
import os
import re
import subprocess

import tap

ROOT = os.environ["INFILL_ROOT"]
NO_COMMENTS = re.compile(r"^(?:lib|vmm)/fuzz/corpus/|/golden/|^cli/test/cases/|\.(json|png|trace|hdr)$")
LARGEST = 1 << 20
# Written with brackets so that these lines do not match themselves.
MACHINE = re.compile(r"/work[/](?:main|shared)|/home[/][a-z]|/root[/]|/tmp[/]c/")
HOSTS = re.compile(r"\b(?:deb|security|snapshot|archive|ftp\.\w+|http)[.]debian[.]org|registry[.]npmjs"
                   r"|pypi[.]org|proxy[.]golang|crates[.]io")
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E|X[X]X)\b")


def tracked():
    """The repository's files; all but build/ where git does not answer."""
    done = subprocess.run(["git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "ls-files", "-z"],
                          stdout=subprocess.PIPE, check=False)
    if done.returncode == 0 and done.stdout:
        names = done.stdout.decode().split("\0")[:-1]
    else:
        names = [os.path.relpath(path, ROOT) for path in
                 glob.glob(os.path.join(ROOT, "**"), recursive=True, include_hidden=True)]
        names = [name for name in names if not name.startswith(("build/", ".git/"))]
    return sorted(name for name in names
                  if os.path.isfile(os.path.join(ROOT, name)) and not os.path.islink(os.path.join(ROOT, name)))


def read(name):
    """A file's text; of a patch what is written here, as the rest is the kernel's."""
    with open(os.path.join(ROOT, name), "rb") as file:
        text = file.read().decode("utf-8", errors="replace")
    if name.endswith(".patch"):
        head, separator, diff = text.partition("\n---\n")
        text = head + separator + "".join(line + "\n" for line in diff.splitlines() if line.startswith("+"))
    return text


FILES = tracked()
TEXTS = {name: read(name) for name in FILES if not re.match("(?:lib|vmm)/fuzz/corpus/", name)
         and os.path.getsize(os.path.join(ROOT, name)) <= LARGEST}


def found(pattern, texts=None):
    """FILE:LINE: of every match."""
    hits = []
    for name, text in (texts or TEXTS).items():
        for number, line in enumerate(text.splitlines(), 1):
            if match := pattern.search(line):
                hits.append(f"{name}:{number}: {match.group(0)}")
    return hits


def expected_licence(name):
    """What is for the kernel's tree, or works on it, has the kernel's licence."""
    return "GPL-2.0" if name.startswith("kernel/") else "MIT"


@tap.test("every file has an SPDX line at its beginning")
def licence():
    tap.true(len(FILES) > 10, "files were found")
    # In two parts, so that this line is no licence line.
    tag = "SPDX-License-" + "Identifier: "
    tap.equal([name for name, text in TEXTS.items()
               if text and not NO_COMMENTS.search(name)
               and tag + expected_licence(name) not in "\n".join(text.splitlines()[:5])], [],
              "files without one")


@tap.test("no file is large or was made by a build")
def made():
    tap.equal([name for name in FILES if os.path.getsize(os.path.join(ROOT, name)) > LARGEST], [],
              f"files of more than {LARGEST} bytes")
    tap.equal([name for name in FILES if "/build/" in name or name.endswith((".o", ".so", ".a"))], [],
              "files that a build made")


@tap.test("no file names a path of one machine")
def machine():
    tap.equal(found(MACHINE), [], "paths")


@tap.test("no file names a host that packages come from")
def hosts():
    tap.equal(found(HOSTS), [], "hosts")


@tap.test("no file names the mirror that this machine uses")
def mirror():
    names = set()
    for path in ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*")]:
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                names |= set(re.findall(r"^[^#\n]*://(?:[^@/\s]*@)?([^/:\s]+)", file.read(), re.MULTILINE))
    names -= {"localhost", "127.0.0.1"}
    if not names:
        tap.skip("this machine has no mirror")
    tap.equal(found(re.compile("|".join(re.escape(name) for name in names))), [], "hosts")


@tap.test("nothing is marked as unfinished")
def unfinished():
    tap.equal(found(UNFINISHED), [], "marks")


def anchors(text):
    """The anchors that a Markdown file's headings make."""
    made = set()
    for heading in re.findall(r"^#+ +(.*)$", text, re.MULTILINE):
        heading = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        made.add(re.sub(r"[^\w\- ]", "", heading).replace(" ", "-"))
    return made


def dead_links(name):
    """The links of one Markdown file that lead nowhere in the repository."""
    dead = []
    prose = re.sub(r"^```.*?^```", "", TEXTS[name], flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(\s*<?([^)\s>]+)", prose)
    links += re.findall(r"(?:src|srcset|href)=\"([^\"\s]+)", prose)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(name), path)) if path else name
        if not os.path.exists(os.path.join(ROOT, target)):
            dead.append(link)
        elif anchor and target.endswith(".md") and anchor not in anchors(read(target)):
            dead.append(link)
    return dead


@tap.test("every link in a Markdown file leads somewhere")
def links():
    pages = [name for name in TEXTS if name.endswith(".md")]
    tap.true(pages, "Markdown files were found")
    tap.equal({name: dead for name in pages if (dead := dead_links(name))}, {}, "dead links")


@tap.test("every script at the root says how it is used")
def help_text():
    for name in ("check", "demo"):
        done = subprocess.run([os.path.join(ROOT, name), "--help"], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=False, timeout=10)
        tap.equal(done.returncode, 0, f"{name} --help")
        tap.contains(done.stdout, f"Usage: ./{name}", f"{name} --help")


tap.run()
