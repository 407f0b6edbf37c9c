"""What a judged program can see: its interpreter, its mounts, and the ways to call bubblewrap.

Starts no program and knows no verdict (runner.py). Usage: `next(bubblewraps("/usr/bin/bwrap"))`.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from invcoder_jax.sandbox import limits

UNSANDBOXED = "none (rlimits only)"
HERE = Path(__file__).resolve().parent
# Not -I: it would ignore PYTHONHASHSEED, and with it the order of sets would change run by run.
# The environment holds nothing else.
FLAGS = ("-s", "-S", "-B")
ENVIRONMENT = {"PYTHONHASHSEED": "0"}


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """A way to start child.py: `level` names it in results, `changes_user` takes an unused uid."""

    level: str
    command: tuple[str, ...]
    changes_user: bool = False


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """The base Python and the folders it reads to start: standard and shared libraries."""

    executable: str
    folders: tuple[str, ...]


# Imports what the standard library links against, then tells where everything came from.
_LIST_FOLDERS = """
import importlib, json, os, sys
for name in ("bz2", "ctypes", "decimal", "hashlib", "lzma", "sqlite3", "ssl", "zlib"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
try:
    with open("/proc/self/maps") as maps:
        files = [line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line]
except OSError:
    files = []
print(json.dumps(sys.path + sorted({os.path.dirname(file) for file in files})))
"""


@functools.cache
def interpreter() -> Interpreter:
    """The base interpreter (never a virtual environment's) and the folders that it needs."""
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    command = [executable, "-I", *FLAGS, "-c", _LIST_FOLDERS]
    listed = json.loads(subprocess.run(command, env={}, stdout=subprocess.PIPE, check=True).stdout)
    folders: list[str] = []
    for folder in sorted({path for path in listed if os.path.isdir(path)}):
        if not any(Path(folder).is_relative_to(outer) for outer in folders):
            folders.append(folder)
    return Interpreter(executable, tuple(folders))


def bubblewraps(bwrap: str) -> Iterator[Sandbox]:
    """Ways to call bwrap here, best first.

    The kernel does not count root's processes, not even in a user namespace that maps root. So
    root takes no user namespace but two capabilities, and child.py gives both up with its user id.
    """
    apart = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts")
    capabilities = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    usage = subprocess.run([bwrap, "--help"], capture_output=True, text=True, check=False).stdout
    level = "bubblewrap" if "--size" in usage else "bubblewrap (read-only /tmp)"
    mounts = _mounts(writable_tmp="--size" in usage)
    if os.geteuid() == 0:
        root = (*apart, "--unshare-cgroup-try", *capabilities)
        yield Sandbox(level, _bubblewrap_command(bwrap, root, mounts), changes_user=True)
    yield Sandbox(level, _bubblewrap_command(bwrap, ("--unshare-all",), mounts))


def _bubblewrap_command(
    bwrap: str, isolation: tuple[str, ...], mounts: tuple[str, ...]
) -> tuple[str, ...]:
    lifetime = ("--die-with-parent", "--new-session", "--clearenv")
    variables = tuple(
        arg for name, value in ENVIRONMENT.items() for arg in ("--setenv", name, value)
    )
    script = (interpreter().executable, *FLAGS, "/sandbox/child.py")
    return (bwrap, *isolation, *lifetime, *variables, *mounts, "--chdir", "/tmp", *script)


def _mounts(writable_tmp: bool) -> tuple[str, ...]:
    """bwrap arguments for a root with the interpreter, two scripts, /tmp, and nothing else."""
    executable, folders = interpreter().executable, interpreter().folders
    shown = {path: path for path in (executable, *folders)}
    shown |= {f"/sandbox/{name}": str(HERE / name) for name in ("child.py", "values.py")}
    links: list[str] = []
    for name in ("/lib", "/lib64"):  # where an ELF file looks for its loader
        if os.path.islink(name):
            links += ["--symlink", os.readlink(name), name]
    for loader in (*Path("/lib").glob("ld-*.so*"), *Path("/lib64").glob("ld-*.so*")):
        place = os.path.join(os.path.realpath(loader.parent), loader.name)
        if not any(Path(place).is_relative_to(folder) for folder in folders):
            shown[place] = os.path.realpath(loader)
    parents = sorted({str(parent) for path in shown for parent in Path(path).parents} - {"/"})
    arguments = [arg for parent in parents for arg in ("--dir", parent)]  # bwrap's own are 0700
    arguments += [arg for path, source in shown.items() for arg in ("--ro-bind", source, path)]
    arguments += [*links, "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for device in ("/dev/null", "/dev/urandom"):
        arguments += ["--dev-bind", device, device]
    for packages in _installed_packages(folders):  # they may hold the benchmarks' answers
        arguments += ["--tmpfs", packages, "--remount-ro", packages]
    size = ("--size", str(limits.SCRATCH_BYTES), "--perms", "1777") if writable_tmp else ()
    arguments += [*size, "--tmpfs", "/tmp", *(() if writable_tmp else ("--remount-ro", "/tmp"))]
    return (*arguments, "--remount-ro", "/")


def _installed_packages(folders: tuple[str, ...]) -> list[str]:
    names = ("site-packages", "dist-packages", "*/site-packages", "*/dist-packages")
    found = {str(p) for f in folders for name in names for p in Path(f).glob(name) if p.is_dir()}
    return sorted(found)


def unsandboxed() -> Sandbox:
    """child.py as a plain process: limits only, for callers who accepted that."""
    return Sandbox(UNSANDBOXED, (interpreter().executable, *FLAGS, str(HERE / "child.py")))
