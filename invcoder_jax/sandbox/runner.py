"""Runs one untrusted Python program against one trusted check, in two processes.

Owns processes, pipes, clocks and the sandbox's mounts; knows no benchmark. The program runs in
child.py inside the sandbox and sees inputs only; the check runs in checker.py outside and sees
answers only. Usage: `run_python(find_sandbox(False), program, "add", check, timeout=10.0,
memory_mb=4096)`.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import IO

from invcoder_jax.errors import UserError
from invcoder_jax.sandbox import limits
from invcoder_jax.sandbox.isolation import (
    ENVIRONMENT,
    FLAGS,
    HERE,
    UNSANDBOXED,
    Sandbox,
    bubblewraps,
    interpreter,
    unsandboxed,
)

log = logging.getLogger(__name__)

STATUSES = ("pass", "fail", "timeout", "oom", "infra_error")


class InfraError(RuntimeError):
    """The machine, not the program, kept us from a verdict; nothing was scored."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one run ended; `contended` marks an end that other load on the machine may explain."""

    status: str
    detail: str
    seconds: float
    contended: bool = False


@functools.cache
def find_sandbox(allow_unsandboxed: bool) -> Sandbox:
    """The best sandbox that holds on this machine; UserError if there is none and one is needed."""
    bwrap, reason = shutil.which("bwrap"), "bwrap is not on PATH"
    for sandbox in bubblewraps(bwrap) if bwrap else ():
        outcome = _probe(sandbox)
        if outcome.status == "pass":
            log.info("sandbox=%r changes_user=%s", sandbox.level, sandbox.changes_user)
            return sandbox
        reason = f"bwrap does not hold on this machine ({outcome.detail})"
    if allow_unsandboxed:
        log.warning("sandbox=%r reason=%r", UNSANDBOXED, reason)
        return unsandboxed()
    mend = "`apt-get install bubblewrap`" if not bwrap else "run on a machine where bwrap works"
    raise UserError(
        f"{reason}, and model-written code runs in a sandbox only; {mend}, or accept the risk with "
        "--allow_unsandboxed (--config.evaluation.allow_unsandboxed=True in a run)"
    )


def run_python(
    sandbox: Sandbox, program: str, entry_point: str, check: str, *, timeout: float, memory_mb: int
) -> Outcome:
    """Judge `program`'s function `entry_point` by trusted code that defines `check(candidate)`.

    `timeout` is CPU seconds of the program, limits.WALL_FACTOR times that on the wall clock;
    `memory_mb` MiB of address space. Interpreter start-up is not counted.
    """
    job = json.dumps({"program": program, "entry_point": entry_point, "check": check}).encode()
    try:
        with _started(sandbox, timeout, memory_mb) as (candidate, checker):
            return _supervise(candidate, checker, job, timeout)
    except OSError as error:
        return Outcome("infra_error", f"a process could not be started: {error}", 0.0)


@contextlib.contextmanager
def _started(
    sandbox: Sandbox, timeout: float, memory_mb: int
) -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """The candidate's and the checker's process, joined by two pipes; killed at the end."""
    confined = {
        "rlimits": limits.candidate_rlimits(timeout, memory_mb),
        "uid": secrets.choice(limits.UNUSED_UIDS) if sandbox.changes_user else None,
        "reply_bytes": limits.REPLY_BYTES,
    }
    with contextlib.ExitStack() as running:
        with contextlib.ExitStack() as descriptors:

            def pipe() -> tuple[int, int]:
                ends = os.pipe()
                for end in ends:
                    descriptors.callback(os.close, end)
                return ends

            (request_read, request_write), (reply_read, reply_write) = pipe(), pipe()
            trusted = {
                "rlimits": limits.checker_rlimits(timeout),
                "requests": request_write,
                "replies": reply_read,
                "reply_bytes": limits.REPLY_BYTES,
                "detail_chars": limits.DETAIL_CHARS,
            }
            candidate = subprocess.Popen(
                [*sandbox.command, json.dumps(confined)],
                stdin=request_read,
                stdout=reply_write,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                cwd=tempfile.gettempdir(),
                start_new_session=True,
            )
            running.callback(_end, candidate)
            checker = subprocess.Popen(
                [interpreter().executable, *FLAGS, HERE / "checker.py", json.dumps(trusted)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
                start_new_session=True,
                pass_fds=(request_write, reply_read),
            )
            running.callback(_end, checker)
        yield candidate, checker


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process with its whole group, and reap it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _supervise(
    candidate: subprocess.Popen[bytes],
    checker: subprocess.Popen[bytes],
    job: bytes,
    timeout: float,
) -> Outcome:
    """Hand the job to the checker and wait for its verdict, but no longer than the clock allows."""
    assert checker.stdin and checker.stdout
    with contextlib.suppress(BrokenPipeError):  # a dead checker shows as a missing verdict
        checker.stdin.write(job)
        checker.stdin.close()
    verdicts = _Verdicts(checker.stdout)
    ready = verdicts.next(limits.STARTUP_SECONDS)
    if ready is None or ready["status"] != "ready":
        return Outcome("infra_error", _startup_failure(candidate, ready), 0.0)
    began = time.monotonic()
    verdict = verdicts.next(limits.wall_seconds(timeout))
    seconds = time.monotonic() - began
    if verdict is None:
        if seconds < limits.wall_seconds(timeout):
            return Outcome("infra_error", "the checker ended without a verdict", seconds)
        detail = f"no verdict after {seconds:.1f} s of wall clock"
        return Outcome("timeout", detail, seconds, contended=True)
    if verdict["status"] == "died":
        return _death(candidate, timeout, seconds)
    return Outcome(verdict["status"], verdict["detail"], seconds)


class _Verdicts:
    """The checker's output, line by line, with a deadline for each."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.descriptor, self.buffer = stream.fileno(), b""

    def next(self, seconds: float) -> dict[str, str] | None:
        """The next verdict; None at the end of the output or after `seconds`."""
        poller, deadline = select.poll(), time.monotonic() + seconds
        poller.register(self.descriptor, select.POLLIN | select.POLLHUP)
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(math.ceil(left * 1000)):
                return None
            data = os.read(self.descriptor, 65536)
            if not data:
                return None
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)


def _startup_failure(candidate: subprocess.Popen[bytes], ready: dict[str, str] | None) -> str:
    """Why no interpreter came up in the sandbox, in bwrap's or Python's own last words."""
    assert candidate.stderr
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(candidate.pid, signal.SIGKILL)
    words = candidate.stderr.read(4000).decode("utf-8", "replace").strip().splitlines()
    if words:
        return words[-1]
    return ready["detail"] if ready else f"not ready after {limits.STARTUP_SECONDS:g} s"


def _death(candidate: subprocess.Popen[bytes], timeout: float, seconds: float) -> Outcome:
    """The outcome of a program whose process ended, or fell silent, before it answered."""
    try:
        code = candidate.wait(limits.DEATH_SECONDS)
    except subprocess.TimeoutExpired:
        return Outcome("fail", "the program closed its channel", seconds)
    killer = -code if code < 0 else max(code - 128, 0)  # bwrap reports a signal as 128 + number
    if killer == signal.SIGXCPU or (killer == signal.SIGKILL and seconds >= timeout):
        return Outcome("timeout", f"used {math.ceil(timeout)} s of CPU", seconds)
    if killer == signal.SIGKILL:
        return Outcome("oom", "killed, most likely for memory", seconds, contended=True)
    return Outcome("fail", f"ended with exit status {code} before it answered", seconds)


_PROBE = """
import os, signal, socket

def probe(processes):
    reached, children = [], []
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        reached.append("network")
    if os.path.exists("/etc/passwd") or os.path.exists("/proc/1"):
        reached.append("files")
    try:
        while len(children) <= processes:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
        reached.append("more processes than allowed")
    except OSError:
        pass
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return reached
"""
_PROBE_CHECK = f"""
def check(candidate):
    reached = candidate({limits.PROCESSES})
    assert reached == [], f"the inside reaches {{reached}}"
"""


def _probe(sandbox: Sandbox) -> Outcome:
    """Try to break out in the simple ways; `pass` means that none worked."""
    return run_python(sandbox, _PROBE, "probe", _PROBE_CHECK, timeout=10.0, memory_mb=1024)
