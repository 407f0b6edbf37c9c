"""Code out of responses: fences as CommonMark reads them, programs told from prose."""

import random

import pytest

from invcoder_jax.codeblocks import (
    Block,
    PaperBlock,
    fence,
    first_block,
    is_python_program,
    paper_block,
)


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("Look:\n```python\nx = 1\n```\nand\n```sh\nls\n```", Block("python", "x = 1")),
        ("```\nx\n\n```", Block("", "x\n")),
        ("~~~~ Py title\nx\n~~~\n```\n~~~~\n", Block("py", "x\n~~~\n```")),
        ("````md\n```python\nx\n```\n`````\nend", Block("md", "```python\nx\n```")),
        ("   ```C++\n   x\n     y\n  ```", Block("c++", "x\n  y")),
        (
            "1. do:\n\n    ```js\n    f({\n      a: 1})\n    ```\n2. end",
            Block("js", "f({\n  a: 1})"),
        ),
        ("- ```rust,no_run\n  fn\n  ```", Block("rust", "fn")),
        ("```{.python .numberLines}\nx\n```", Block("python", "x")),
        ("```{r, echo=FALSE}\nx\n```", Block("r", "x")),
        ("```python:main.py\nx\n```", Block("python", "x")),
        ("```py\r\nx\r\ny\r\n```\r\n", Block("py", "x\ny")),
        ("```py\n``` python\n```", Block("py", "``` python")),
        ('```py\n"""\n        ```\n"""\n```', Block("py", '"""\n        ```\n"""')),
        ("Try this: ```python\nx = 1\n```", Block("python", "x = 1")),
        ("```python\nx = 1```", Block("python", "x = 1")),
        ("```py\n```", Block("py", "")),
    ],
)
def test_the_first_block_is_read(text, block):
    assert first_block(text) == block


@pytest.mark.parametrize("text", ["", "no code", "Use `x` or ```y``` here.", "``", "Write ```"])
def test_text_without_a_fenced_block_has_none(text):
    assert first_block(text) is None


@pytest.mark.parametrize("code", ["x = 1", "x = 1\n", "def f():\n    return 'a'\n\n\n", "é"])
def test_an_unclosed_fence_loses_no_character(code):
    assert first_block("Here:\n```python\n" + code) == Block("python", code, closed=False)


def test_what_is_fenced_reads_back_as_it_was():
    random.seed(5)
    pieces = ["x = 1", "", "```", "    ```python", "````", "~~~", "é", "  y"]
    for _ in range(300):
        code = "\n".join(random.choices(pieces, k=random.randint(1, 6)))
        again = first_block(fence(code, "python"))
        assert again is not None and again.language == "python" and again.closed
        assert again.code == code.removesuffix("\n")


@pytest.mark.parametrize(
    "text",
    [
        "print(1)", "x = 1", "x: int = 1", "import os", "def f(): pass", "class A: pass",
        "for i in y: pass", "if x: y", "assert f(2) == 3", "[f(x) for x in y]", "x.y.z()",
        "async def f():\n    await g()", "# a note\nimport os", "(lambda: 1)()",
    ],
)  # fmt: skip
def test_programs_are_programs(text):
    assert is_python_program(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "   \n", "Yes", "No, never", "42", "-3.5", "'text'", "'''A docstring.'''", "a, b",
        "[1, 2]", "yes or no", "this is it", "Note: this", "Name: John\nage: 30", "example.com",
        "Yes (probably)", "# only a comment", "pass", "return it", "not found", "self - made",
        "The sky is blue.", "x = (", "\0", "(" * 9999, "SELECT * FROM t",
    ],
)  # fmt: skip
def test_prose_that_parses_is_no_program(text):
    assert not is_python_program(text)


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("A\n```py\nx\n```\nB ```c```", PaperBlock("py", "```py\nx\n```")),
        ("A ```py\nx = 12", PaperBlock("py", "```py\nx = 1```")),  # loses the last character
        ("````\nx\n````", PaperBlock("`", "````")),  # the search begins inside the opening
        ("word", PaperBlock("python", "```python\nword```")),
        ("", PaperBlock("python", "```python\n```")),
        ("x = 1\n", PaperBlock("python", "```python\nx = 1\n```")),
        ("two words", None),
        ("~~~\ntwo words\n~~~", None),
    ],
)
def test_the_papers_rules_keep_their_faults(text, block):
    assert paper_block(text) == block
