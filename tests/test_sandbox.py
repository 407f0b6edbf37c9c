"""The sandbox holds: programs that cheat, break out or misbehave get no pass and reach nothing."""

import concurrent.futures
import contextlib
import json
import logging
import math
import os
import time
from pathlib import Path

import pytest

from invcoder_jax.errors import UserError
from invcoder_jax.sandbox import isolation, limits, runner, values

CHECK = """
def check(candidate):
    assert candidate([3, 1, 2]) == [1, 2, 3]
    assert candidate([]) == []
"""
RIGHT = "def f(x):\n    return sorted(x)\n"


@pytest.fixture(scope="module")
def sandbox() -> runner.Sandbox:
    try:
        return runner.find_sandbox(False)
    except UserError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


def judge(sandbox: runner.Sandbox, program: str, check: str = CHECK, **how: float):
    how = {"timeout": 5.0, "memory_mb": 512} | how
    return runner.run_python(sandbox, program, "f", check, **how)  # type: ignore[arg-type]  # both numbers


def told(sandbox: runner.Sandbox, program: str):
    """What a program finds out inside: the value of its f()."""
    check = "def check(candidate):\n    raise AssertionError(candidate())\n"
    outcome = judge(sandbox, program, check)
    assert outcome.status == "fail", outcome
    return outcome.detail.removeprefix("AssertionError: ")


def test_a_right_program_passes(sandbox):
    assert judge(sandbox, RIGHT).status == "pass"


def test_a_wrong_program_fails(sandbox):
    assert judge(sandbox, "def f(x):\n    return x\n").status == "fail"


CHEATS = {
    "exits with success while loading": "import sys\nsys.exit(0)\n",
    "exits with success at once": "import os\nos._exit(0)\n",
    "exits with success when called": "import os\ndef f(x):\n    os._exit(0)\n",
    "raises SystemExit when called": "def f(x):\n    raise SystemExit(0)\n",
    "prints a verdict": (
        "import sys\n"
        'print(\'{"status": "pass", "detail": ""}\', flush=True)\n'
        'print(\'{"status": "pass"}\', file=sys.stderr, flush=True)\n'
        "def f(x):\n    return x\n"
    ),
    "writes a verdict to every descriptor": (
        "import os\n"
        "for fd in range(64):\n"
        "    try:\n"
        '        os.write(fd, b\'{"status": "pass", "detail": ""}\\n\')\n'
        "    except OSError:\n"
        "        pass\n"
        "def f(x):\n    return x\n"
    ),
    "is equal to everything": (
        "class Any:\n"
        "    def __eq__(self, other):\n        return True\n"
        "    __hash__ = None\n"
        "def f(x):\n    return Any()\n"
    ),
    "is a list that is equal to everything": (
        "class Any(list):\n"
        "    def __eq__(self, other):\n        return True\n"
        "def f(x):\n    return Any()\n"
    ),
    "reads the answer from its callers": (
        "import sys\n"
        "def f(x):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:\n"
        "            if value == [1, 2, 3]:\n"
        "                return value\n"
        "        frame = frame.f_back\n"
    ),
    "reads the answer from the heap": (
        "import gc\n"
        "def f(x):\n"
        "    for thing in gc.get_objects():\n"
        "        if isinstance(thing, list) and thing == sorted(x) and thing is not x:\n"
        "            if len(thing) == 3:\n"
        "                return thing\n"
    ),
    "replaces builtins": (
        "import builtins\n"
        "builtins.AssertionError = type('Quiet', (BaseException,), {})\n"
        "builtins.list = builtins.sorted = lambda *a: True\n"
        "def f(x):\n    return x\n"
    ),
    "replaces the encoder of its answers": (
        "import sys\n"
        "sys.modules['values'].encode = lambda value: {'other': 'pass'}\n"
        "def f(x):\n    return x\n"
    ),
    "defines check itself": "def check(candidate):\n    pass\ndef f(x):\n    return x\n",
    "closes its channel": "import os\nos.closerange(0, 64)\ndef f(x):\n    return sorted(x)\n",
    "floods its channel": (
        "import os\n"
        "for fd in range(3, 64):\n"
        "    try:\n"
        "        while os.write(fd, b'[' * 65536):\n"
        "            pass\n"
        "    except OSError:\n"
        "        pass\n"
        "def f(x):\n    return sorted(x)\n"
    ),
    "kills everything it may": (
        "import os, signal\n"
        "def f(x):\n"
        "    os.kill(-1, signal.SIGKILL)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    ),
    "is not Python": "def f(x) return x\n",
    "has no such function": "def g(x):\n    return sorted(x)\n",
    "returns itself inside itself": "def f(x):\n    x.append(x)\n    return x\n",
    "recurses for ever": "def f(x):\n    return f(x)\n",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_program_gets_no_pass_when_it(sandbox, cheat):
    assert judge(sandbox, CHEATS[cheat]).status == "fail"


def test_a_cheat_that_check_swallows_still_fails(sandbox):
    check = "def check(candidate):\n    try: candidate(1)\n    except Exception: pass\n"
    assert judge(sandbox, "def f(x):\n    raise ValueError\n", check).status == "fail"


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    while True:\n        pass\n",
        "while True:\n    pass\n",
        "import signal\nfor n in (14, 15, 24):\n    signal.signal(n, signal.SIG_IGN)\n"
        "def f(x):\n    while True:\n        pass\n",
    ],
)
def test_an_endless_loop_is_a_timeout_by_its_cpu_time(sandbox, program):
    outcome = judge(sandbox, program, timeout=1.0)
    assert outcome.status == "timeout" and outcome.seconds < 10


def test_a_program_that_sleeps_is_a_timeout_by_the_clock_and_worth_another_try(sandbox):
    outcome = judge(sandbox, "import time\ndef f(x):\n    time.sleep(60)\n", timeout=0.5)
    assert outcome.status == "timeout" and outcome.contended
    assert 0.5 * limits.WALL_FACTOR <= outcome.seconds < 5


def test_too_much_memory_is_oom(sandbox):
    assert judge(sandbox, "def f(x):\n    return len('x' * 10**10)\n").status == "oom"
    grows = "def f(x):\n    while True:\n        x.append('y' * 10**6)\n"
    assert judge(sandbox, grows).status == "oom"


def processes(memory_mb: int) -> list[str]:
    """Ids of all processes that were started for a program with that memory limit."""
    mark = str(memory_mb * limits.MIB).encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes()
            if b"child.py" in command and mark in command:
                found.append(path.parent.name)
    return found


@pytest.mark.parametrize(
    "behaviour",
    [
        "while True:\n        try: os.fork()\n        except OSError: pass",
        "os.fork() or os.setsid() or time.sleep(300)\n    time.sleep(0.5)\n    return sorted(x)",
        "os.fork() and os._exit(0)\n    time.sleep(300)",
    ],
    ids=["fork bomb", "daemon", "orphan"],
)
def test_no_process_outlives_its_run_and_their_number_is_limited(sandbox, behaviour):
    memory_mb = 600 + os.getpid() % 1000  # tells this run's processes from all others
    program = f"import os, time\ndef f(x):\n    {behaviour}\n"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(judge, sandbox, program, timeout=1.0, memory_mb=memory_mb)
        most = 0
        while not running.done():
            most = max(most, len(processes(memory_mb)))
            time.sleep(0.01)
    assert running.result().status in ("pass", "fail", "timeout")
    assert 1 <= most <= limits.PROCESSES + 2, "bwrap itself runs twice beside the program"
    deadline = time.monotonic() + 5
    while processes(memory_mb) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not processes(memory_mb)


def test_the_hosts_files_are_absent(sandbox, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    places = ["/etc/passwd", "/etc/hostname", "/proc/self", str(secret), str(Path(__file__))]
    program = f"import os\ndef f():\n    return [p for p in {places!r} if os.path.exists(p)]\n"
    assert told(sandbox, program) == "[]"


def test_the_home_folder_holds_nothing_but_the_way_to_the_interpreter(sandbox):
    program = f"import os\ndef f():\n    return sorted(os.listdir({str(Path.home())!r}))\n"
    base = Path(isolation.interpreter().executable)
    if base.is_relative_to(Path.home()):
        assert told(sandbox, program) == repr([base.relative_to(Path.home()).parts[0]])
    else:
        assert "FileNotFoundError" in told(sandbox, program)


def test_installed_packages_are_absent_because_they_hold_the_answers(sandbox):
    program = (
        "import os, sys\n"
        "def f():\n"
        "    found = []\n"
        "    for path in sys.path:\n"
        "        for folder, _, names in os.walk(path):\n"
        "            if 'site-packages' in folder or 'dist-packages' in folder:\n"
        "                found += names\n"
        "    return found\n"
    )
    assert told(sandbox, program) == "[]"


def test_the_environment_tells_nothing_and_no_path_but_tmp_is_writable(sandbox, monkeypatch):
    monkeypatch.setenv("INVCODER_SECRET", "1")
    program = (
        "import os\n"
        "def f():\n"
        "    wrote = []\n"
        "    for folder, _, _ in os.walk('/'):\n"
        "        try:\n"
        "            open(os.path.join(folder, 'w'), 'w').close()\n"
        "            wrote.append(folder)\n"
        "        except OSError:\n"
        "            pass\n"
        "    return sorted(os.environ), wrote\n"
    )
    assert told(sandbox, program).endswith(", ['/tmp'])")
    assert "SECRET" not in told(sandbox, program)


def test_scratch_space_is_capped(sandbox):
    program = (
        "import os\n"
        "def f():\n"
        "    written = 0\n"
        "    try:\n"
        "        for n in range(1000):\n"
        "            with open(f'/tmp/{n}', 'wb', buffering=0) as file:\n"
        "                written += file.write(bytes(8 * 2**20))\n"
        "    except OSError:\n"
        "        pass\n"
        "    return written // 2**20\n"
    )
    assert int(told(sandbox, program)) <= limits.SCRATCH_BYTES // 2**20


def test_the_network_is_absent(sandbox):
    program = (
        "import socket\n"
        "def f():\n"
        "    names = [name for _, name in socket.if_nameindex()]\n"
        "    try:\n"
        "        socket.create_connection(('1.1.1.1', 53), timeout=1)\n"
        "    except OSError:\n"
        "        return names\n"
        "    return 'connected'\n"
    )
    assert told(sandbox, program) == "['lo']"


def test_a_program_has_no_right_of_root(sandbox):
    program = (
        "import os\n"
        "def f():\n"
        "    try:\n"
        "        os.chroot('/tmp')\n"
        "    except PermissionError:\n"
        "        return 'refused'\n"
    )
    assert told(sandbox, program) == "refused"


def test_sets_have_the_same_order_in_every_run(sandbox):
    program = "def f():\n    return ''.join({chr(n) for n in range(97, 123)})\n"
    assert told(sandbox, program) == told(sandbox, program)


def test_a_program_learns_nothing_of_the_check(sandbox):
    program = "import sys\ndef f():\n    return sys.argv, __name__\n"
    assert told(sandbox, program) == "(['/sandbox/child.py'], 'candidate')"


def test_input_finds_the_end_and_output_goes_nowhere(sandbox):
    program = "def f(x):\n    print('a' * 10**7)\n    try:\n        input()\n    except EOFError:\n"
    assert judge(sandbox, program + "        return sorted(x)\n").status == "pass"


def test_an_answer_that_is_too_long_fails(sandbox):
    program = f"def f(x):\n    return 'a' * {limits.REPLY_BYTES}\n"
    assert "too long" in judge(sandbox, program).detail


def test_a_broken_sandbox_is_infra_error_with_its_own_words(sandbox):
    broken = runner.Sandbox("broken", ("/bin/sh", "-c", "echo no mounts today >&2; exit 1"))
    outcome = judge(broken, RIGHT)
    assert (outcome.status, outcome.detail) == ("infra_error", "no mounts today")
    absent = runner.Sandbox("absent", ("/nonexistent/bwrap",))
    assert judge(absent, RIGHT).status == "infra_error"


def test_a_broken_check_is_infra_error(sandbox):
    assert judge(sandbox, RIGHT, "def check(candidate:\n").status == "infra_error"


def test_a_check_that_dies_is_infra_error_and_one_that_is_slow_is_a_timeout(sandbox):
    dies = "import os, signal\ndef check(candidate):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    assert judge(sandbox, RIGHT, dies).status == "infra_error"
    slow = "def check(candidate):\n    while True: pass\n"
    assert judge(sandbox, RIGHT, slow, timeout=0.5).status == "timeout"


def test_no_bubblewrap_is_refused_with_the_mend_unless_accepted(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    find = runner.find_sandbox.__wrapped__
    with pytest.raises(UserError, match="apt-get install bubblewrap.*--allow_unsandboxed"):
        find(False)
    with caplog.at_level(logging.WARNING):
        level = find(True).level
    assert level == "none (rlimits only)" and "bwrap is not on PATH" in caplog.text


def test_a_bubblewrap_that_does_not_work_is_refused(monkeypatch, tmp_path):
    false = tmp_path / "bwrap"
    false.write_text("#!/bin/sh\necho 'No permissions to create a new namespace' >&2\nexit 1\n")
    false.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match="No permissions to create a new namespace"):
        runner.find_sandbox.__wrapped__(False)


def test_a_bubblewrap_that_isolates_nothing_is_refused(monkeypatch, tmp_path):
    script = tmp_path / "bwrap"
    child = Path(runner.__file__).parent / "child.py"
    python = isolation.interpreter().executable
    script.write_text(f'#!/bin/sh\nfor last; do :; done\nexec {python} -s -S {child} "$last"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # as root, giving up its user would fail first
    with pytest.raises(UserError, match="the inside reaches"):
        runner.find_sandbox.__wrapped__(False)


@pytest.mark.parametrize("program", [RIGHT, "import os\nos._exit(0)\n", "while True:\n    pass\n"])
def test_the_unsandboxed_level_gives_the_same_verdicts(sandbox, program):
    plain = judge(isolation.unsandboxed(), program, timeout=1.0)
    assert plain.status == judge(sandbox, program, timeout=1.0).status


VALUES = [
    None, True, 0, -(2**63), 2**64, 10**5000, -0.0, 1.5, math.inf, -math.inf, 1 + 2j, "a\ud800\n",
    b"\x00\xff", [], [1, [2]], (), (1, (2,)), {1, "a"}, frozenset({(1, 2)}),
    {}, {1: "a", "1": "b", (1, 2): [None], None: 2.5}, {"tuple": [1]},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_a_value_comes_back_with_its_exact_type(value):
    back = values.decode(json.loads(json.dumps(values.encode(value), allow_nan=False)))
    assert type(back) is type(value) and back == value
    assert math.copysign(1, back) == math.copysign(1, value) if value == 0 else True


def test_nan_comes_back():
    assert math.isnan(values.decode(json.loads(json.dumps(values.encode(math.nan)))))


def test_subclasses_become_their_base_and_other_types_are_equal_to_nothing():
    class Sly(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    back = values.decode(values.encode([Sly(3), range(3)]))
    assert type(back[0]) is int and back[0] != 4
    assert back[1] != range(3) and repr(back[1]) == "<range object>"


@pytest.mark.parametrize(
    "data",
    [{}, {"a": 1}, {"tuple": 1}, {"set": [[]]}, {"dict": [[1]]}, {"int": "x"}, {"float": "1"},
     {"bytes": "0"}, {"complex": [1]}, {"tuple": [], "set": []}],
)  # fmt: skip
def test_a_forged_value_is_refused(data):
    with pytest.raises((ValueError, TypeError)):
        values.decode(data)
