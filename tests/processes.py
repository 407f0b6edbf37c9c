"""Runs of the command line as processes of their own: started, watched, killed, compared."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
TINY = "configs/tiny.py"
TIMES = ("seconds", "finished_at", "hosts")  # of a manifest: what two equal runs may differ in


def environment(**extra: str) -> dict[str, str]:
    """The environment of a user's process: one CPU device, the tests' compilation cache."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return {**kept, "JAX_PLATFORMS": "cpu", **extra}


def command(*arguments: str) -> list[str]:
    """`invcoder ...` under the running interpreter."""
    return [sys.executable, "-m", "invcoder_jax.cli", *arguments]


def invcoder(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(*arguments), cwd=REPOSITORY, env=environment(**extra),
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def run_tiny(workdir: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The whole loop of configs/tiny.py."""
    return invcoder("run", f"--config={TINY}", f"--workdir={workdir}", *overrides)


@dataclasses.dataclass
class Killed:
    """What a killed run had said, and whether it was still running when it was killed."""

    log: list[str]
    was_running: bool

    @property
    def stage(self) -> str | None:
        """The stage in which the process was killed, None when it was between two."""
        last = None
        for line in self.log:
            if found := re.search(r"stage=(\w+) started", line):
                last = found[1]
            elif re.search(r"stage=\w+ finished", line):
                last = None
        return last


def run_and_kill(workdir: Path, stage: str, delay: float) -> Killed:
    """Start the tiny loop and SIGKILL it `delay` seconds after a stage began."""
    process = subprocess.Popen(
        command("run", f"--config={TINY}", f"--workdir={workdir}"),
        cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    log: list[str] = []
    begun = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if f"stage={stage} started" in line:
                begun.set()
        begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    begun.wait(timeout=300)
    time.sleep(delay)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    reader.join()
    return Killed(log, running)


def comparable_files(workdir: Path) -> dict[str, bytes]:
    """Every file of a run but times: manifests without their time fields, no Orbax internals."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        skipped = "tensorboard/" in name or "/steps/" in name
        if not path.is_file() or skipped or path.name in ("timings.jsonl", ".lock"):
            continue
        data = path.read_bytes()
        if path.name == "manifest.json":
            manifest = {k: v for k, v in json.loads(data).items() if k not in TIMES}
            data = json.dumps(manifest).encode()
        found[name] = data
    return found
