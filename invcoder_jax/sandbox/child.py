"""The untrusted side: loads one program inside the sandbox and answers calls of its function.

A script for the base interpreter, never imported. Its argument is JSON {rlimits, uid, reply_bytes};
requests come in on descriptor 0 and replies go out on 1, one JSON line each. It never learns what
answer is expected, so nothing that the program does to this process can turn a wrong one right.
"""

import json
import os
import resource
import sys
import types
from typing import Any, BinaryIO

import values

OUT_OF_MEMORY = b'{"error":"MemoryError","memory":true}\n'


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Descriptors 0 and 1 under other numbers; the program's own input and output go nowhere."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    return requests, replies


def confine(rlimits: dict[str, int], uid: int | None) -> None:
    """Take the limits, and an unused user id when root started us: no limit counts root's forks."""
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    for name, value in rlimits.items():
        kind = getattr(resource, name)
        _, allowed = resource.getrlimit(kind)
        # SIGXCPU may be caught; one second later the hard limit kills.
        wanted = (value, value + 1) if name == "RLIMIT_CPU" else (value, value)
        if allowed != resource.RLIM_INFINITY:
            wanted = (min(wanted[0], allowed), min(wanted[1], allowed))
        resource.setrlimit(kind, wanted)


def failure(error: BaseException) -> dict[str, Any]:
    """An exception as a reply."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:
        text = "an exception that cannot be printed"
    return {"error": text, "memory": isinstance(error, MemoryError)}


def load(program: str, entry_point: str) -> tuple[Any, dict[str, Any]]:
    """(the program's function, reply); (None, reply) when the program does not load."""
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(compile(program, "candidate.py", "exec"), module.__dict__)
        return module.__dict__[entry_point], {"loaded": True}
    except BaseException as error:
        return None, failure(error)


def call(function: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one call."""
    try:
        arguments, keywords = values.decode(request["args"]), values.decode(request["kwargs"])
        return {"value": values.encode(function(*arguments, **keywords))}
    except BaseException as error:
        return failure(error)


def main() -> None:
    """Report ready, load the program of the first request, then answer calls until the end."""
    options = json.loads(sys.argv.pop())
    requests, replies = take_pipes()
    confine(options["rlimits"], options["uid"])
    sys.path.pop(0)  # this folder: the program sees the standard library alone

    def send(reply: dict[str, Any]) -> None:
        try:
            line = json.dumps(reply, allow_nan=False).encode() + b"\n"
        except MemoryError:
            line = OUT_OF_MEMORY
        if len(line) > options["reply_bytes"]:
            line = b'{"error":"the answer is too long"}\n'
        replies.write(line)
        replies.flush()

    send({"ready": True})
    first = json.loads(requests.readline())
    function, reply = load(first["program"], first["entry_point"])
    send(reply)
    for line in requests:
        send(call(function, json.loads(line)))


if __name__ == "__main__":
    main()
