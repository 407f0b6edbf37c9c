"""Prompts: the wire format is exact, values with braces survive, a bad prompt file is refused."""

import json

import pytest

from invcoder_jax.errors import UserError
from invcoder_jax.prompts import PREFIXES, Prompts, load_prompts

BLOCK = "```python\nprint({'instruction': '{instruction}'})\n```"


def test_the_template_is_the_one_that_released_checkpoints_were_trained_on():
    assert load_prompts().instruct("Sort.") == (
        "You are an exceptionally intelligent coding assistant that consistently delivers "
        "accurate and reliable responses to user instructions.\n\n"
        "@@ Instruction\nSort.\n\n@@ Response\n"
    )


def test_there_are_the_seven_prefixes_of_the_paper():
    verbs = ("Write", "Create", "Implement", "Develop", "Design", "Build", "I want")
    assert load_prompts().prefixes == tuple(f"{verb} a" for verb in verbs)


def test_the_language_tag_follows_the_prefix():
    assert load_prompts().prefix(1, "python") == "Create a python"
    assert load_prompts().prefix(6, "") == "I want a"
    assert load_prompts().prefix(0) == PREFIXES[0]


def test_every_prompt_ends_where_the_response_begins():
    prompts = load_prompts()
    asked = [prompts.instruct("x"), prompts.summarize(BLOCK), prompts.self_evaluate("x", BLOCK)]
    for text in (*asked, prompts.humaneval("def f():\n")[0]):
        assert text.endswith("\n\n@@ Response\n")
        assert text.count("@@ Instruction\n") == 1


def test_braces_in_code_and_instructions_stay():
    prompts = load_prompts()
    assert BLOCK in prompts.summarize(BLOCK)
    text = prompts.self_evaluate("Fill {block} and {code}.", BLOCK)
    assert "Fill {block} and {code}." in text
    assert text.count(BLOCK) == 1
    assert text.index("Fill") < text.index(BLOCK) < text.index("Yes or No")


def test_humaneval_opens_the_response_with_the_problem():
    problem = '\n\ndef add(x, y):\n    """Add."""\n'
    prompt, response = load_prompts().humaneval(problem)
    assert problem in prompt
    assert response == "```python\n" + problem


def test_a_file_replaces_what_it_names(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"summarize_instruction": "Why?\n{block}", "prefixes": ["Make a"]}))
    prompts = load_prompts(str(path))
    assert "@@ Instruction\nWhy?\n" + BLOCK in prompts.summarize(BLOCK)
    assert prompts.prefix(0, "go") == "Make a go"
    assert prompts.self_evaluate_instruction == Prompts().self_evaluate_instruction


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"summarise": "x {block}"}', "summarise"),
        (b'{"summarize_instruction": "no place for it"}', "{block}"),
        (b'{"template": 3}', "template is a int"),
        (b'{"prefixes": "Write a"}', "list of strings"),
        (b'{"prefixes": []}', "one or more"),
        (b"[]", "a list"),
        (b"{nope", "not JSON"),
        (b'{"template": "\xff"}', "UTF-8"),
    ],
)
def test_a_bad_prompt_file_is_refused(tmp_path, content, words):
    path = tmp_path / "prompts.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="prompt|prefixes") as refused:
        load_prompts(str(path))
    assert words in str(refused.value)


def test_a_missing_prompt_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.json"):
        load_prompts(str(tmp_path / "none.json"))
