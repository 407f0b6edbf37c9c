"""Code out of a response: the first fenced block, or the whole text if it is a Python program.

Fences follow CommonMark 0.31 section 4.5, also inside list items. Knows nothing of rows.
Usage: `block = first_block(response); fence(block.code, block.language)`.
"""

import ast
import dataclasses
import re
import warnings

# A fence may follow a list marker; a backtick fence's info string holds no backtick.
OPENING = re.compile(
    r"(?P<indent>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)"
    r"(?P<marks>`{3,}(?=[^`]*$)|~{3,})(?P<info>.*)"
)
# Not CommonMark, but written by models: "Try this: ```python", taken if a closing fence follows.
LATE_OPENING = re.compile(r"(?P<indent>)[^`]*[^`\s][^`]*(?P<marks>`{3,})(?P<info>[\w+#.-]+)[ \t]*")
LANGUAGE = re.compile(r"\{?\s*[.=]?([^\s{}.,:;=][^\s{},:;=]*)")
FENCE_INDENT = 3  # columns that a closing fence may be indented beyond its opening
STATEMENTS = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Assign, ast.AugAssign, ast.For, ast.AsyncFor, ast.While, ast.If, ast.With),
    *(ast.AsyncWith, ast.Try, ast.TryStar, ast.Match),
)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: language tag (lower case, "" if none) and code between the fence lines."""

    language: str
    code: str
    closed: bool = True


def first_block(text: str) -> Block | None:
    """The first fenced block; one that is never closed runs to the end of the text, all of it."""
    lines = text.replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines):
        opening = OPENING.fullmatch(line)
        if opening:
            return _read_block(opening, lines[number + 1 :])
        opening = LATE_OPENING.fullmatch(line)
        if opening and (block := _read_block(opening, lines[number + 1 :])).closed:
            return block
    return None


def _read_block(opening: re.Match[str], rest: list[str]) -> Block:
    language, width = _language(opening["info"]), len(opening["indent"])
    marks = f"{opening['marks'][0]}{{{len(opening['marks'])},}}[ \t]*"
    closing = re.compile(rf"[ \t]{{0,{width + FENCE_INDENT}}}{marks}")
    content = [_outdent(line, width) for line in rest]
    for number, line in enumerate(rest):
        if closing.fullmatch(line):
            return Block(language, "\n".join(content[:number]))
    for number, line in enumerate(rest):  # not CommonMark, but the released script writes it
        if glued := re.search(rf"(?<![`~]){marks}$", line):
            last = _outdent(line[: glued.start()], width)
            return Block(language, "\n".join([*content[:number], last]))
    return Block(language, "\n".join(content), closed=False)


def _outdent(line: str, width: int) -> str:
    """`line` without up to `width` characters of leading space."""
    blank = len(line) - len(line.lstrip(" \t"))
    return line[min(width, blank) :]


def _language(info: str) -> str:
    found = LANGUAGE.match(info.strip())
    return found[1].lower() if found else ""


def fence(code: str, language: str) -> str:
    """`code` as a fenced block whose marks are longer than any fence line of the code itself."""
    inner = re.findall(r"^[ \t]*(`{3,})", code, re.MULTILINE)
    marks = "`" * max([3, *(len(m) + 1 for m in inner)])
    return f"{marks}{language}\n{code}{'' if code.endswith(chr(10)) else chr(10)}{marks}"


def is_python_program(text: str) -> bool:
    """Whether the text parses and is code: more than prose, names and constants that parse."""
    tree = _parse(text)
    if tree is None:
        return False
    if any(isinstance(s, STATEMENTS) or _assigns(s) for s in tree.body):
        return True
    lines = text.encode().replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return any(isinstance(node, ast.Call) and _is_call(node, lines) for node in ast.walk(tree))


def _assigns(statement: ast.stmt) -> bool:
    """`x: int = 1`, but not `Note: this`."""
    return isinstance(statement, ast.AnnAssign) and statement.value is not None


def _is_call(node: ast.Call, lines: list[bytes]) -> bool:
    """`f(x)`, but not prose such as `Yes (probably)`: nothing stands before the bracket."""
    if node.func.end_lineno is None or node.func.end_col_offset is None:
        return False
    after = lines[node.func.end_lineno - 1][node.func.end_col_offset :]
    return after[:1] in (b"(", b")")


def _parse(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes are the author's affair
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@dataclasses.dataclass(frozen=True)
class PaperBlock:
    """What the released script keeps: the language tag as its sampler reads it, and the block."""

    language: str
    block: str


def paper_block(text: str) -> PaperBlock | None:
    """The released script's extraction with its faults; None if it rejects.

    The search for the end begins one character after the start, so four marks end at once; a
    fence that is never closed loses the text's last character; the empty text parses.
    """
    if "```" in text:
        start = text.find("```")
        block = text[start : text.find("```", start + 1)] + "```"
    elif _parse(text) is not None:
        block = f"```python\n{text}```"
    else:
        return None
    first_line = block.removeprefix("```").split("\n", 1)[0]
    return PaperBlock(first_line.removesuffix("```").strip(), block)
