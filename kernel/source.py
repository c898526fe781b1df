# SPDX-License-Identifier: GPL-2.0
"""The pristine source that BASE names, kept as one commit in a bare git repository,
build/kernel/source.git; all trees are made from it. Change it when another form of source is to be
accepted; what is accepted stands in BASE.
"""
import hashlib
import os
import shutil
import subprocess
import tarfile
from datetime import datetime

from output import BUILD, HERE, ROOT, Failure, Progress, environment, locked, run, shorten

GIT = os.path.join(BUILD, "source.git")
LOCK = os.path.join(BUILD, "locks", "source")
BRANCH = "refs/heads/base"


def read_base():
    """The assignments of BASE."""
    base = {}
    with open(os.path.join(HERE, "BASE"), encoding="utf-8") as file:
        for line in file:
            name, equals, value = line.strip().partition("=")
            if equals and not name.startswith("#"):
                base[name] = value
    return base


BASE = read_base()
IDENTITY = f"Linux {BASE['RELEASE']} <base@linux.invalid>"
MESSAGE = f"Linux {BASE['RELEASE']}, Debian's {BASE['PACKAGE']} {BASE['VERSION']}\n"


def git(*arguments, **options):
    """git in the repository of the source; its output without the last newline."""
    return run(["git", "--git-dir", GIT, *arguments], **options).stdout.rstrip("\n")


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---- where the files come from ----------------------------------------------


def fetch_package(directory):
    """Download the package with apt, from the mirror that the machine uses, and check it."""
    pattern = f"{BASE['PACKAGE']}={BASE['VERSION']}"
    run(["bash", "-c", '. "$1" && shift && setup_fetch "$@"', "setup", os.path.join(ROOT, "scripts", "setup"),
         BASE["SUITE"], "all", pattern, directory])
    debs = [name for name in os.listdir(directory) if name.endswith(".deb")]
    if len(debs) != 1:
        raise Failure(f"{pattern}: apt did not get it from {BASE['SUITE']}: if the archive has a newer "
                      "version only, set LINUX_SRC= to a copy of this one (BASE)")
    deb = os.path.join(directory, debs[0])
    found = sha256(deb)
    if found != BASE["DEB_SHA256"]:
        raise Failure(f"{pattern}: expected SHA-256 {BASE['DEB_SHA256']}, found {found}")
    return deb


def tar_members(file):
    """(path, mode, data or link) of each file of a tar stream, without its one top folder."""
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            path = member.name.removeprefix("./").partition("/")[2]
            if member.issym():
                yield path, "120000", member.linkname.encode()
            elif member.isreg() and path:
                mode = "100755" if member.mode & 0o100 else "100644"
                yield path, mode, archive.extractfile(member).read()
            elif not member.isdir():
                raise Failure(f"{member.name}: neither a file, a folder nor a link")


def tree_members(top):
    """(path, mode, data or link) of each file of an unpacked tree; .git is not part of it."""
    for folder, folders, names in os.walk(top):
        folders.sort()
        if folder == top and ".git" in folders:
            folders.remove(".git")
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted(names + links):
            full = os.path.join(folder, name)
            path = os.path.relpath(full, top)
            if path == ".git":
                continue
            if os.path.islink(full):
                yield path, "120000", os.readlink(full).encode()
            elif not os.path.isfile(full):
                raise Failure(f"{full}: neither a file, a folder nor a link")
            else:
                with open(full, "rb") as file:
                    data = file.read()
                yield path, "100755" if os.stat(full).st_mode & 0o100 else "100644", data


def decompress(path, command):
    """A process whose stdout is the tar stream."""
    return subprocess.Popen(command + [path], stdout=subprocess.PIPE, env=environment())


DECOMPRESSORS = {".xz": ["xz", "-dc"], ".gz": ["gzip", "-dc"], ".tgz": ["gzip", "-dc"], ".tar": ["cat"]}


def read_tarball(path):
    """The members of a tarball, its compression by its name."""
    kind = os.path.splitext(path)[1]
    if kind not in DECOMPRESSORS:
        raise Failure(f"{path}: not a tree and not a .tar, .tar.gz or .tar.xz")
    process = decompress(path, DECOMPRESSORS[kind])
    try:
        yield from tar_members(process.stdout)
    except tarfile.TarError as error:
        raise Failure(f"{path}: {error}") from None
    finally:
        process.stdout.close()
        process.wait()


def read_package(deb):
    """The members of the tarball in the package."""
    outer = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, env=environment())
    tar = subprocess.Popen(["tar", "-xO", "./" + BASE["TARBALL"]], stdin=outer.stdout,
                           stdout=subprocess.PIPE, env=environment())
    xz = subprocess.Popen(["xz", "-dc"], stdin=tar.stdout, stdout=subprocess.PIPE, env=environment())
    outer.stdout.close()
    tar.stdout.close()
    try:
        yield from tar_members(xz.stdout)
    finally:
        xz.stdout.close()
        for process in (xz, tar, outer):
            process.wait()


# ---- into git ---------------------------------------------------------------


def quote(path):
    """A path for fast-import."""
    if "\n" in path or path.startswith('"'):
        raise Failure(f"{path!r}: no file of Linux has such a name")
    return path.encode(errors="surrogateescape")


def base_time():
    """DATE in seconds."""
    return int(datetime.fromisoformat(BASE["DATE"].replace("Z", "+00:00")).timestamp())


def import_commit(repository, members, progress):
    """One commit of all members; equal members give an equal commit. Returns its hash."""
    importer = subprocess.Popen(
        ["git", "--git-dir", repository, "-c", "core.compression=1", "fast-import", "--quiet", "--depth=0", "--done"],
        stdin=subprocess.PIPE, env=environment())
    count = 0
    with importer.stdin as out:
        out.write(b"commit %s\ncommitter %s %d +0000\ndata %d\n%s" % (
            BRANCH.encode(), IDENTITY.encode(), base_time(), len(MESSAGE), MESSAGE.encode()))
        for path, mode, data in members:
            out.write(b"M %s inline %s\ndata %d\n" % (mode.encode(), quote(path), len(data)))
            out.write(data + b"\n")
            count += 1
            progress.note(f"{count} files")
        out.write(b"done\n")
    if importer.wait():
        raise Failure(f"{repository}: git fast-import failed")
    return run(["git", "--git-dir", repository, "rev-parse", BRANCH]).stdout.strip()


def release_of(repository, commit):
    """What the imported Makefile calls itself, for the message of a refusal."""
    done = run(["git", "--git-dir", repository, "show", f"{commit}:Makefile"], check=False)
    values = dict(line.split(" = ", 1) for line in done.stdout.splitlines()[:8] if " = " in line)
    names = ("VERSION", "PATCHLEVEL", "SUBLEVEL")
    return ".".join(values[name] for name in names) if all(name in values for name in names) else None


def check_tree(repository, commit, what):
    """Refuse a source that is not BASE's."""
    found = run(["git", "--git-dir", repository, "rev-parse", f"{commit}^{{tree}}"]).stdout.strip()
    if found == BASE["TREE"]:
        return
    release = release_of(repository, commit)
    if release is None:
        raise Failure(f"{what}: not a Linux source: expected {BASE['PACKAGE']} {BASE['VERSION']}")
    hint = ""
    if release == BASE["RELEASE"]:
        hint = "; it is that release, but Debian's own patches are missing, or something was changed or built in it"
    raise Failure(f"{what}: expected Linux {BASE['RELEASE']} of {BASE['PACKAGE']} {BASE['VERSION']} "
                  f"(git tree {BASE['TREE']}), found Linux {release} (git tree {found}){hint}")


def make_repository(members, what, key):
    """source.git, all of it or none; one that is there stays, as its content is the same."""
    unfinished = GIT + ".new"
    shutil.rmtree(unfinished, ignore_errors=True)
    run(["git", "init", "-q", "--bare", "--template=", "--initial-branch=base", unfinished])
    run(["git", "--git-dir", unfinished, "config", "gc.auto", "0"])
    try:
        with Progress(f"reading {what}") as progress:
            commit = import_commit(unfinished, members, progress)
        check_tree(unfinished, commit, what)
        if is_made():
            git("config", "infill.source", key)
        else:
            run(["git", "--git-dir", unfinished, "config", "infill.source", key])
            shutil.rmtree(GIT, ignore_errors=True)
            os.rename(unfinished, GIT)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def is_made():
    """True when source.git has this BASE."""
    done = run(["git", "--git-dir", GIT, "log", "-1", "--format=%T %ct", BRANCH, "--"], check=False)
    return done.stdout.split() == [BASE["TREE"], str(base_time())]


def own_source(path):
    """The members of what LINUX_SRC= names."""
    if not os.path.exists(path):
        raise Failure(f"LINUX_SRC={path}: not found: name a tarball or an unpacked tree of Linux {BASE['RELEASE']}")
    return tree_members(path) if os.path.isdir(path) else read_tarball(path)


def make_from_own(path):
    """Read what LINUX_SRC= names, unless it was read and accepted before."""
    members = own_source(path)
    state = os.stat(path)
    key = f"{os.path.realpath(path)} {state.st_mtime_ns} {state.st_size}"
    known = run(["git", "--git-dir", GIT, "config", "infill.source"], check=False).stdout.strip()
    if not (is_made() and known == key):
        make_repository(members, f"LINUX_SRC={path}", key)


def make_from_package():
    """Download the package and read it."""
    download = os.path.join(BUILD, "download")
    shutil.rmtree(download, ignore_errors=True)
    os.makedirs(download)
    with Progress(f"downloading {BASE['PACKAGE']} {BASE['VERSION']}"):
        deb = fetch_package(download)
    make_repository(read_package(deb), shorten(deb), "the package")
    shutil.rmtree(download)


def base_commit():
    """The hash of the base commit, making source.git first when it is missing or of another BASE."""
    os.makedirs(BUILD, exist_ok=True)
    with locked(LOCK, "the kernel's source"):
        if own := os.environ.get("LINUX_SRC"):
            make_from_own(own)
        elif not is_made():
            make_from_package()
        return git("rev-parse", BRANCH)
