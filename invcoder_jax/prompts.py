"""What the models are asked, as data: the instruct template, the wrappers and the prefix pool.

Owns texts only; tokenization.py turns them into ids. The template and the seven prefixes are the
wire format of the released checkpoints (Magicoder's, InverseCoder's) and kept exactly; the
wrappers have the paper's structure and order in words of their own. A JSON file may replace any of
them.
Usage: `prompts = load_prompts(); prompts.instruct("Sort a list.") + response`.
"""

import dataclasses
import json
import re
from typing import Any

from etils import epath

from invcoder_jax.errors import UserError

TEMPLATE = (
    "You are an exceptionally intelligent coding assistant that consistently delivers accurate "
    "and reliable responses to user instructions.\n\n"
    "@@ Instruction\n{instruction}\n\n"
    "@@ Response\n"
)
PREFIXES = (
    "Write a",
    "Create a",
    "Implement a",
    "Develop a",
    "Design a",
    "Build a",
    "I want a",
)
# The placeholders that each template must hold; other braces in a template are plain text.
PLACEHOLDERS = {
    "template": ("instruction",),
    "summarize_instruction": ("block",),
    "self_evaluate_instruction": ("instruction", "block"),
    "humaneval_instruction": ("problem",),
    "humaneval_response": ("problem",),
}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The templates; raises UserError for a template that lacks one of its placeholders."""

    template: str = TEMPLATE
    summarize_instruction: str = (
        "The code snippet below was written to solve a programming task, "
        "state the task that it solves:\n{block}"
    )
    self_evaluate_instruction: str = (
        "Consider this programming task:\n{instruction}\n\n"
        "This code was submitted as its solution:\n{block}\n"
        "Does the code solve the task correctly? Start your reply with Yes or No."
    )
    humaneval_instruction: str = (
        "Complete the function below so that it solves the problem it describes:\n"
        "```python\n{problem}\n```"
    )
    humaneval_response: str = "```python\n{problem}"
    prefixes: tuple[str, ...] = PREFIXES

    def __post_init__(self) -> None:
        for name, placeholders in PLACEHOLDERS.items():
            for placeholder in placeholders:
                if "{" + placeholder + "}" not in getattr(self, name):
                    raise UserError(
                        f"prompt {name!r} lacks {{{placeholder}}}; "
                        f"it must hold {['{' + p + '}' for p in placeholders]}"
                    )
        if not self.prefixes or not all(p.strip() for p in self.prefixes):
            raise UserError(f"prefixes are {self.prefixes}; give one or more non-empty prefixes")

    def instruct(self, instruction: str) -> str:
        """The template up to and with "@@ Response\\n"; the response is encoded apart."""
        return _fill(self.template, instruction=instruction)

    def summarize(self, block: str) -> str:
        """The prompt that asks what task a fenced snippet solves; a prefix opens its response."""
        return self.instruct(_fill(self.summarize_instruction, block=block))

    def self_evaluate(self, instruction: str, block: str) -> str:
        """The prompt whose reply begins with Yes or No: does the block solve the instruction?"""
        return self.instruct(
            _fill(self.self_evaluate_instruction, instruction=instruction, block=block)
        )

    def humaneval(self, problem_prompt: str) -> tuple[str, str]:
        """(full prompt, response prefix): the problem is asked and then opens the response."""
        question = _fill(self.humaneval_instruction, problem=problem_prompt.rstrip("\n"))
        return self.instruct(question), _fill(self.humaneval_response, problem=problem_prompt)

    def prefix(self, index: int, language: str = "") -> str:
        """How a summary begins: the index-th prefix, then the snippet's language tag if any."""
        return f"{self.prefixes[index]} {language}".rstrip()


def load_prompts(file: str = "") -> Prompts:
    """The built-in prompts, with those that a JSON file names replaced; UserError if it is off."""
    if not file:
        return Prompts()
    try:
        data = json.loads(epath.Path(file).read_bytes().decode("utf-8"))
    except OSError as error:
        raise UserError(
            f"prompts.file {file!r} cannot be read ({error.strerror}); name a JSON file"
        ) from error
    except ValueError as error:
        raise UserError(
            f"prompts.file {file!r} is not JSON in UTF-8 ({error}); write one JSON object"
        ) from error
    return Prompts(**_checked(file, data))


def _checked(file: str, data: Any) -> dict[str, Any]:
    known = [f.name for f in dataclasses.fields(Prompts)]
    if not isinstance(data, dict) or not set(data) <= set(known):
        found = sorted(data) if isinstance(data, dict) else f"a {type(data).__name__}"
        raise UserError(f"prompts.file {file!r} holds {found}; use only the fields {known}")
    for name, value in data.items():
        if name == "prefixes":
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise UserError(f"prompts.file {file!r}: prefixes must be a list of strings")
        elif not isinstance(value, str):
            raise UserError(
                f"prompts.file {file!r}: {name} is a {type(value).__name__}; it must be a string"
            )
    return {n: tuple(v) if isinstance(v, list) else v for n, v in data.items()}


def _fill(template: str, **values: str) -> str:
    """`template` with its {names} replaced in one pass: braces inside a value stay as they are."""
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)
