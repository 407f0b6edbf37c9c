"""Every limit that a judged program runs under; runner.py and the two scripts only apply them.

Usage: `candidate_rlimits(timeout=10.0, memory_mb=4096)`.
"""

import math

MIB = 1024 * 1024

STARTUP_SECONDS = 30.0  # until the interpreter in the sandbox is ready: the machine's time
WALL_FACTOR = 2.0  # wall-clock seconds for each CPU second: other work must not fail a program
DEATH_SECONDS = 2.0  # how long a process that has fallen silent may take to end
PROCESSES = 32  # processes and threads at once; no HumanEval solution starts one
FILE_BYTES = 16 * MIB  # one file
SCRATCH_BYTES = 64 * MIB  # /tmp, all files together
OPEN_FILES = 256
REPLY_BYTES = 16 * MIB  # one answer on its way out of the sandbox
DETAIL_CHARS = 300  # of an exception's text in a verdict
CHECKER_MEMORY_MB = 2048  # of the trusted process that compares answers
UNUSED_UIDS = range(2_000_000_000, 2_100_000_000)  # above the ranges that systemd and useradd give


def candidate_rlimits(timeout: float, memory_mb: int) -> dict[str, int]:
    """setrlimit names and values for a program with `timeout` s of CPU and MiB of addresses."""
    return {
        "RLIMIT_CPU": math.ceil(timeout),
        "RLIMIT_AS": memory_mb * MIB,
        "RLIMIT_NPROC": PROCESSES,
        "RLIMIT_FSIZE": FILE_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0,
    }


def checker_rlimits(timeout: float) -> dict[str, int]:
    """setrlimit names and values for the benchmark's own test code, which is trusted data."""
    return {
        # Past the wall clock: a program whose answers are slow to read must end as a timeout.
        "RLIMIT_CPU": math.ceil(wall_seconds(timeout)) + 2,
        "RLIMIT_AS": CHECKER_MEMORY_MB * MIB,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_CORE": 0,
    }


def wall_seconds(timeout: float) -> float:
    """Wall-clock limit of a program whose CPU limit is `timeout` seconds."""
    return timeout * WALL_FACTOR
