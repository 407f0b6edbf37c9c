"""The trusted side: runs a benchmark's own `check(candidate)` outside the sandbox.

A script for the base interpreter, never imported. `candidate` is a proxy: each call goes to
child.py in the sandbox and a tagged value comes back, so model-written code never runs here and
the expected answers never go there. Argument: JSON {rlimits, requests, replies, reply_bytes,
detail_chars}; input: JSON {program, entry_point, check}; output: a line when the sandbox is ready
and a line with the verdict.
"""

import json
import os
import random
import resource
import sys
from typing import Any, BinaryIO

import values


class Failed(Exception):
    """The program gave no answer to a call; the verdict is in `verdict`."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(detail)
        self.verdict = {"status": status, "detail": detail}


class Proxy:
    """What check() takes for the candidate; remembers a failed call even if check() swallows it."""

    def __init__(self, requests: BinaryIO, replies: BinaryIO, reply_bytes: int) -> None:
        self.requests, self.replies, self.reply_bytes = requests, replies, reply_bytes
        self.failed: Failed | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.ask({"args": values.encode(args), "kwargs": values.encode(kwargs)}, "value")

    def ask(self, message: dict[str, Any] | None, key: str) -> Any:
        """The decoded `key` of the reply to a message; raises Failed when there is none."""
        try:
            if message is not None:
                self.requests.write(json.dumps(message, allow_nan=False).encode() + b"\n")
                self.requests.flush()
            return self.read(key)
        except (BrokenPipeError, EOFError) as error:
            self.failed = Failed("died", "the process ended before it answered")
            raise self.failed from error
        except Failed as error:
            self.failed = error
            raise

    def read(self, key: str) -> Any:
        """The decoded `key` of the next reply line, which may hold anything at all."""
        line = self.replies.readline(self.reply_bytes + 1)
        if not line:
            raise EOFError
        try:
            reply = json.loads(line)
            if "error" not in reply:
                return values.decode(reply[key])
        except (ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
            raise Failed("fail", f"not a valid reply: {type(error).__name__}") from error
        status = "oom" if reply.get("memory") is True else "fail"
        raise Failed(status, str(reply["error"]))


def verdict_of(job: dict[str, str], proxy: Proxy, check: Any) -> dict[str, str]:
    """Load the program in the sandbox and run check() on the proxy."""
    try:
        proxy.ask({"program": job["program"], "entry_point": job["entry_point"]}, "loaded")
        random.seed(0)  # some checks draw their inputs: the same ones in every run
        check(proxy)
    except BaseException as error:
        if proxy.failed is None:
            return {"status": "fail", "detail": f"{type(error).__name__}: {error}"}
    return proxy.failed.verdict if proxy.failed else {"status": "pass", "detail": ""}


def main() -> None:
    """One job: trusted code first, then the sandbox's ready, then the verdict."""
    options = json.loads(sys.argv[1])
    job = json.loads(sys.stdin.buffer.read())
    output = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)  # some checks print
    for name, value in options["rlimits"].items():
        _, hard = resource.getrlimit(getattr(resource, name))
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(getattr(resource, name), (limit, hard))
    sys.path.pop(0)

    def send(verdict: dict[str, Any]) -> None:
        detail = str(verdict.get("detail", ""))[: options["detail_chars"]]
        output.write(json.dumps({**verdict, "detail": detail}).encode() + b"\n")
        output.flush()

    proxy = Proxy(
        os.fdopen(options["requests"], "wb"),
        os.fdopen(options["replies"], "rb"),
        options["reply_bytes"],
    )
    namespace: dict[str, Any] = {"__name__": "check"}
    try:
        exec(compile(job["check"], "check.py", "exec"), namespace)
        proxy.ask(None, "ready")
    except BaseException as error:
        send({"status": "infra_error", "detail": f"{type(error).__name__}: {error}"})
        return
    send({"status": "ready"})
    send(verdict_of(job, proxy, namespace["check"]))


if __name__ == "__main__":
    main()
