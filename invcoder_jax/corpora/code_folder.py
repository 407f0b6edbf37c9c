"""Pairs out of Python code: a function's docstring asks for the function.

Takes module-level functions only, because a method makes no sense without its class. Usage:
`pairs, dropped = read_code_folder(Path("my_project"), "my_project")`.
"""

import ast
import os
import sysconfig
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from invcoder_jax.codeblocks import fence
from invcoder_jax.errors import UserError
from invcoder_jax.records import Pair

SHORTEST_DOCSTRING = 20  # characters; shorter ones do not say what to do
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
# Tests, applications and generated data inside the standard library.
SKIPPED_IN_STDLIB = frozenset(
    {"test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "ensurepip", "pydoc_data"}
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def read_stdlib() -> tuple[list[Pair], Counter[str]]:
    """Pairs of the running interpreter's standard library, and the counts of what was dropped."""
    return read_code_folder(Path(sysconfig.get_paths()["stdlib"]), "stdlib", SKIPPED_IN_STDLIB)


def read_code_folder(
    folder: Path, source: str, skipped: Collection[str] = ()
) -> tuple[list[Pair], Counter[str]]:
    """(pairs, dropped by reason) in the order of paths and lines.

    Every module-level function of every .py file is a row, and so is a file that cannot be read;
    each is a pair or is counted. Hidden folders and those named in `skipped` are not entered.
    """
    if not folder.is_dir():
        raise UserError(f"'{folder}' is no folder; name a folder with Python files")
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    docstrings: set[str] = set()
    bodies: set[str] = set()
    for path in _python_files(folder, skipped):
        text, tree, reason = _read(path)
        if tree is None:
            dropped[reason] += 1
            continue
        lines = text.split("\n")
        for function in (s for s in tree.body if isinstance(s, Function)):
            reason = _unfit(function)
            docstring = ast.get_docstring(function) or ""
            code = "" if reason else _without_docstring(function, lines)
            if not reason and code in bodies:
                reason = "duplicate_code"
            if not reason and docstring in docstrings:
                reason = "duplicate_docstring"
            if reason:
                dropped[reason] += 1
                continue
            bodies.add(code)
            docstrings.add(docstring)
            where = f"{source}/{path.relative_to(folder).as_posix()}:{function.name}"
            pairs.append(Pair.make(_ask(function, docstring), fence(code, "python"), where))
    return pairs, dropped


def _python_files(folder: Path, skipped: Collection[str]) -> Iterator[Path]:
    avoided = SKIPPED_FOLDERS | set(skipped)
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in avoided and not f.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if name.endswith(".py"))


def _read(path: Path) -> tuple[str, ast.Module | None, str]:
    """(text with Unix line ends, its tree, ""), or ("", None, why the file is dropped)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return "", None, "not_utf8"
    except OSError:
        return "", None, "unreadable_file"
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes are the author's affair
            return text, ast.parse(text), ""
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "", None, "not_python"


def _unfit(function: Function) -> str:
    """Why a function makes no pair, "" if it does."""
    docstring = ast.get_docstring(function)
    if function.name.startswith("__") and function.name.endswith("__"):
        return "dunder"
    if not docstring:
        return "no_docstring"
    if len(docstring) < SHORTEST_DOCSTRING or " " not in docstring:
        return "short_docstring"
    if not _has_work(function.body[1:]):
        return "trivial_body"
    return ""


def _has_work(body: list[ast.stmt]) -> bool:
    """Whether a body is more than `pass`, `...` or one raise."""
    if len(body) > 1:
        return True
    return bool(body) and not (
        isinstance(body[0], ast.Pass | ast.Raise)
        or (isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant))
    )


def _ask(function: Function, docstring: str) -> str:
    kind = "async function" if isinstance(function, ast.AsyncFunctionDef) else "function"
    signature = f"{function.name}({ast.unparse(function.args)})"
    return f"Write a Python {kind} `{signature}`: {docstring}"


def _without_docstring(function: Function, lines: list[str]) -> str:
    """The function's own text, comments included, less its docstring and blank lines after it."""
    first, following = function.body[0], function.body[1]
    start = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    end = function.end_lineno or len(lines)
    doc_end = first.end_lineno or first.lineno
    alone = lines[first.lineno - 1][: first.col_offset].strip() == ""
    if not alone or following.lineno <= doc_end or _trailing(first, lines):
        function.body = function.body[1:]
        return ast.unparse(function)
    after = lines[doc_end:end]
    while not after[0].strip():
        after.pop(0)
    return "\n".join([*lines[start - 1 : first.lineno - 1], *after])


def _trailing(docstring: ast.stmt, lines: list[str]) -> bool:
    """Whether anything follows the docstring on its last line."""
    line = lines[(docstring.end_lineno or docstring.lineno) - 1].encode()
    return line[docstring.end_col_offset or 0 :].strip() != b""
