# SPDX-License-Identifier: GPL-2.0
"""The series: kernel/patches and kernel/files as steps, made into commits on the base, and commits
written back. How it is kept stands in patches/series. Change it when a step has to hold more than a
mail and whole files.
"""
import email.utils
import filecmp
import hashlib
import os
import re
import shutil
import tempfile

import source
from output import BUILD, HERE, Failure, locked, run

PATCHES = os.path.join(HERE, "patches")
FILES = os.path.join(HERE, "files")
INDEX = os.path.join(PATCHES, "series")
BRANCH = "refs/heads/series"
# Of this many lines on, a new file is kept whole.
WHOLE = 40
STEP = re.compile(r"(?P<name>\d{4}-[\w.+-]+\.patch)(?:\s+#\s*(?P<comment>.*?))?\s*$")
LICENCE = "SPDX-License-Identifier: GPL-2.0"


class Step:
    """One line of series and the files below it."""

    def __init__(self, name, comment=""):
        self.name, self.comment, self.files = name, comment, []

    @property
    def path(self):
        return os.path.join(PATCHES, self.name)


def read_index():
    """The lines above the first step, and the steps."""
    head, steps = [], []
    with open(INDEX, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\n")
            where = f"{source.shorten(INDEX)}:{number}"
            if line.startswith("\t") and line.strip():
                if not steps:
                    raise Failure(f"{where}: a file above the first step")
                steps[-1].files.append(line.strip())
            elif match := STEP.match(line):
                steps.append(Step(match["name"], match["comment"] or ""))
            elif line.strip() and not line.startswith("#"):
                raise Failure(f"{where}: neither `NNNN-name.patch  # one sentence` nor a tab and a file: {line}")
            elif not steps:
                head.append(line)
    return head, steps


def check_complete(steps):
    """Every patch and file is named once, and every name is there."""
    names = [step.name for step in steps]
    files = [name for step in steps for name in step.files]
    for kind, listed, present in (("patches", names, present_patches()), ("files", files, present_files())):
        if twice := {name for name in listed if listed.count(name) > 1}:
            raise Failure(f"kernel/patches/series: named twice: {' '.join(sorted(twice))}")
        if missing := sorted(set(listed) - set(present)):
            raise Failure(f"kernel/{kind}: named in patches/series but not there: {' '.join(missing)}")
        if extra := sorted(set(present) - set(listed)):
            raise Failure(f"kernel/{kind}: there but not named in patches/series: {' '.join(extra)}")


def present_patches():
    return [name for name in os.listdir(PATCHES) if name.endswith(".patch")]


def present_files():
    found = []
    for folder, _, names in os.walk(FILES):
        found += [os.path.relpath(os.path.join(folder, name), FILES) for name in names]
    return found


def fingerprint(steps):
    """A hash of everything that the commits are made from."""
    digest = hashlib.sha256(source.BASE["TREE"].encode() + source.BASE["DATE"].encode())
    for step in steps:
        for path in [step.path] + [os.path.join(FILES, name) for name in step.files]:
            with open(path, "rb") as file:
                data = file.read()
            mode = os.stat(path).st_mode & 0o100
            digest.update(b"%s %d %d\0" % (os.path.relpath(path, HERE).encode(), mode, len(data)) + data)
    return digest.hexdigest()


# ---- steps to commits -------------------------------------------------------


class Mail:
    """What `git am` would take from a patch."""

    def __init__(self, path, scratch):
        message, self.diff = os.path.join(scratch, "message"), os.path.join(scratch, "diff")
        with open(path, "rb") as file:
            info = run(["git", "mailinfo", "-b", "--encoding=UTF-8", message, self.diff], stdin=file).stdout
        fields = dict(line.split(": ", 1) for line in info.splitlines() if ": " in line)
        with open(message, encoding="utf-8") as file:
            body = file.read().strip("\n")
        for name in ("Author", "Email", "Subject", "Date"):
            if not fields.get(name):
                raise Failure(f"{source.shorten(path)}: no {name} in its header")
        self.author, self.email = fields["Author"], fields["Email"]
        self.message = fields["Subject"] + "\n" + (f"\n{body}\n" if body else "")
        when = email.utils.parsedate_to_datetime(fields["Date"])
        zone = when.strftime("%z") or "+0000"
        self.date = f"{int(when.timestamp())} {zone}"

    def identity(self):
        """The environment in which git commits as the patch's author, at its date."""
        env = {}
        for who in ("AUTHOR", "COMMITTER"):
            env[f"GIT_{who}_NAME"], env[f"GIT_{who}_EMAIL"] = self.author, self.email
            env[f"GIT_{who}_DATE"] = self.date
        return env

    def has_diff(self):
        with open(self.diff, "rb") as file:
            return re.search(rb"^diff --git ", file.read(), re.MULTILINE) is not None


def add_files(step, env):
    """Put the step's whole files into the index."""
    for name in step.files:
        path = os.path.join(FILES, name)
        if source.git("ls-files", "--", name, env=env):
            raise Failure(f"{step.name}: {name} is there already: a change of it belongs in the patch")
        mode = "100755" if os.stat(path).st_mode & 0o100 else "100644"
        blob = source.git("hash-object", "-w", "--no-filters", "--", path)
        source.git("update-index", "--add", "--cacheinfo", f"{mode},{blob},{name}", env=env)


def commit_step(step, parent, scratch, env):
    """Apply one step to the index and commit it; the commit's hash."""
    mail = Mail(step.path, scratch)
    if mail.has_diff():
        done = run(["git", "--git-dir", source.GIT, "apply", "--cached", "--whitespace=nowarn", mail.diff],
                   env=env, check=False)
        if done.returncode:
            raise Failure(f"kernel/patches/{step.name}: does not apply: {'; '.join(done.stderr.split(chr(10))[:3])}")
    add_files(step, env)
    tree = source.git("write-tree", env=env)
    if tree == source.git("rev-parse", f"{parent}^{{tree}}"):
        raise Failure(f"kernel/patches/{step.name}: changes nothing and names no file")
    return source.git("commit-tree", tree, "-p", parent, env=mail.identity(), input=mail.message)


def make_commits(steps, base):
    """A commit for each step on the base; the last one's hash."""
    with tempfile.TemporaryDirectory(prefix="series.", dir=BUILD) as scratch:
        env = {"GIT_INDEX_FILE": os.path.join(scratch, "index")}
        source.git("read-tree", base, env=env)
        commit = base
        for step in steps:
            commit = commit_step(step, commit, scratch, env)
    return commit


def series_commit():
    """The hash of the last step's commit, in source.git; made only when something changed."""
    base = source.base_commit()
    steps = read_index()[1]
    check_complete(steps)
    key = fingerprint(steps)
    with locked(source.LOCK, "the kernel's source"):
        made = run(["git", "--git-dir", source.GIT, "config", "infill.series"], check=False).stdout.split()
        if len(made) == 2 and made[0] == key:
            return made[1]
        commit = make_commits(steps, base)
        source.git("update-ref", BRANCH, commit)
        source.git("config", "infill.series", f"{key} {commit}")
    return commit


# ---- commits to steps -------------------------------------------------------


def slug(subject):
    """The name that git format-patch would give."""
    return re.sub(r"[^\w.]+", "-", subject, flags=re.ASCII).strip("-.")[:52].strip("-.")


class Commit:
    """One commit of a person's tree, as a step to be written."""

    def __init__(self, git, commit, taken):
        self.git, self.commit = git, commit
        self.subject = git("log", "-1", "--format=%s", commit)
        self.files = [name for name in self.added() if name not in taken and self.is_whole(name)]

    def added(self):
        """The regular files that the commit adds."""
        names = []
        fields = self.git("diff-tree", "-r", "-z", "--no-renames", "--diff-filter=A", "--no-commit-id",
                          self.commit).split("\0")
        for head, name in zip(fields[0::2], fields[1::2]):
            if head.split()[1] in ("100644", "100755"):
                names.append(name)
        return sorted(names)

    def content(self, name):
        return self.git("cat-file", "blob", f"{self.commit}:{name}", text=False)

    def is_whole(self, name):
        data = self.content(name)
        return b"\0" not in data and data.count(b"\n") >= WHOLE

    def mail(self):
        """Header, message and the diff without the whole files."""
        head = self.git("log", "-1", "--format=From: %an <%ae>%nDate: %aD%nSubject: [PATCH] %s", self.commit)
        body = self.git("log", "-1", "--format=%b", self.commit).strip("\n")
        exclude = [f":(exclude,top,literal){name}" for name in self.files]
        diff = self.git("diff-tree", "-p", "--no-commit-id", "--no-ext-diff", "--no-textconv", "--no-color",
                        "-M", "--binary", "--abbrev=12", "--diff-algorithm=histogram", self.commit,
                        "--", ".", *exclude, text=False)
        text = f"{head}\n{LICENCE}\n\n{body}\n\n---\n\n" if body else f"{head}\n{LICENCE}\n\n---\n\n"
        return text.encode() + diff


def write_files(commit, files):
    for name in commit.files:
        path = os.path.join(files, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(commit.content(name))
        mode = commit.git("ls-tree", commit.commit, "--", name)[:6]
        os.chmod(path, 0o755 if mode == "100755" else 0o644)


def write_steps(commits, patches, files, comments):
    """Write everything anew below two folders; returns the lines of series."""
    lines = []
    for number, commit in enumerate(commits, 1):
        name = f"{number:04}-{slug(commit.subject)}.patch"
        with open(os.path.join(patches, name), "wb") as file:
            file.write(commit.mail())
        write_files(commit, files)
        lines.append(f"{name}  # {comments.get(commit.subject) or commit.subject}")
        lines += ["\t" + path for path in commit.files]
    return lines


def subject_of(step):
    with tempfile.TemporaryDirectory(prefix="series.", dir=BUILD) as scratch:
        return Mail(step.path, scratch).message.partition("\n")[0]


def sync_folder(new, old):
    """Make old equal to new, leaving files that are equal untouched."""
    keep = {os.path.relpath(os.path.join(folder, name), new) for folder, _, names in os.walk(new) for name in names}
    os.makedirs(old, exist_ok=True)
    for folder, _, names in os.walk(old, topdown=False):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.relpath(path, old) not in keep:
                os.unlink(path)
        if folder != old and not os.listdir(folder):
            os.rmdir(folder)
    for name in sorted(keep):
        path, target = os.path.join(new, name), os.path.join(old, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not (os.path.isfile(target) and filecmp.cmp(path, target, shallow=False)
                and os.access(path, os.X_OK) == os.access(target, os.X_OK)):
            shutil.copy(path, target)


def save(git, commits):
    """Write the commits (hashes, oldest first) to kernel/patches and kernel/files."""
    head, steps = read_index()
    comments = {subject_of(step): step.comment for step in steps if os.path.exists(step.path)}
    taken, written = set(), []
    for commit in commits:
        written.append(Commit(git, commit, taken))
        taken.update(written[-1].files)
    with tempfile.TemporaryDirectory(prefix="save.", dir=BUILD) as scratch:
        patches, files = os.path.join(scratch, "patches"), os.path.join(scratch, "files")
        os.mkdir(patches)
        os.mkdir(files)
        lines = write_steps(written, patches, files, comments)
        while head and not head[-1].strip():
            head.pop()
        with open(os.path.join(patches, "series"), "w", encoding="utf-8") as file:
            file.write("\n".join(head + ([""] if lines else []) + lines) + "\n")
        sync_folder(patches, PATCHES)
        sync_folder(files, FILES)
