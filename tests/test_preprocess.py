"""Preprocess: at most one snippet a pair, and every row counted once under its reason."""

import random

import pytest

from invcoder_jax.codeblocks import first_block
from invcoder_jax.errors import UserError
from invcoder_jax.records import Pair
from invcoder_jax.stages.preprocess import DROPPED, KEPT, RULES, preprocess

RESPONSES = {
    "Two blocks:\n```Python\nx = 1\n```\n```sh\nls\n```\nBye.": ("fenced", "```python\nx = 1\n```"),
    "```js\nf()": ("fenced", "```js\nf()\n```"),
    "~~~\nx\n~~~": ("fenced", "```\nx\n```"),
    "````md\n```\nx\n```\n````": ("fenced", "````md\n```\nx\n```\n````"),
    "\ndef f():\n    return 1\n": ("parsed", "```python\ndef f():\n    return 1\n```"),
    "```python\n\n```\n```python\nx = 1\n```": ("empty_block", None),
    " \n": ("empty_response", None),
    "Yes": ("no_code", None),
    "The answer is 4.": ("no_code", None),
}


@pytest.mark.parametrize("response", RESPONSES)
def test_a_response_gives_its_snippet_or_its_reason(response):
    reason, block = RESPONSES[response]
    snippets, counts = preprocess([Pair.make("Do it.", response)], "mended")
    assert [s.block for s in snippets] == ([block] if block else [])
    assert counts[reason] == 1
    assert counts["rows"] == sum(counts[r] for r in (*KEPT, *DROPPED)) == 1


def test_a_snippet_knows_its_pair_and_language():
    pair = Pair.make("Do it.", "```C++\nint x;\n```")
    snippets, _ = preprocess([pair], "mended")
    assert (snippets[0].pair_id, snippets[0].language) == (pair.id, "c++")


def test_the_papers_rules_keep_what_the_released_script_keeps():
    wanted = {
        "```py\nx = 12": ("py", "```py\nx = 1```"),
        "Yes": ("python", "```python\nYes```"),
        "": ("python", "```python\n```"),
    }
    for response, (language, block) in wanted.items():
        snippets, _ = preprocess([Pair.make("Do it.", response)], "paper")
        assert [(s.language, s.block) for s in snippets] == [(language, block)]


@pytest.mark.parametrize("rules", RULES)
def test_no_row_is_dropped_without_being_counted(rules):
    random.seed(11)
    pieces = ["```", "```python", "~~~~", "x = 1", "prose is here", "", "    ```", "`a`", "Yes"]
    pairs = [
        Pair.make(str(n), "\n".join(random.choices(pieces, k=random.randint(0, 7))))
        for n in range(2000)
    ]
    snippets, counts = preprocess(iter(pairs), rules)
    assert counts["rows"] == len(pairs) == sum(counts[r] for r in (*KEPT, *DROPPED))
    assert counts["kept"] == len(snippets) == sum(counts[r] for r in KEPT)
    assert [s.pair_id for s in snippets] == [p.id for p in pairs if p.id in _pair_ids(snippets)]
    assert len(_pair_ids(snippets)) == len({s.id for s in snippets}) == len(snippets)
    if rules == "mended":
        for snippet in snippets:
            block = first_block(snippet.block)
            assert block and block.closed and block.language == snippet.language


def _pair_ids(snippets) -> set[str]:
    return {snippet.pair_id for snippet in snippets}


def test_equal_responses_give_snippets_of_their_own():
    pairs = [Pair.make("Do it.", "x = 1", occurrence=n) for n in range(3)]
    snippets, _ = preprocess(pairs, "mended")
    assert len({s.id for s in snippets}) == 3


def test_an_id_that_occurs_twice_is_refused():
    pair = Pair.make("Do it.", "x = 1")
    with pytest.raises(UserError, match=pair.id):
        preprocess([pair, pair], "mended")


def test_unknown_rules_are_refused():
    with pytest.raises(UserError, match="'strict'"):
        preprocess([], "strict")
