"""Stage preprocess: one code snippet out of each response, or a counted reason (section 4.1).

Usage: `snippets, counts = preprocess(pairs, "mended")`.
"""

from collections.abc import Iterable

from invcoder_jax.artifacts import StageFolder
from invcoder_jax.codeblocks import fence, first_block, is_python_program, paper_block
from invcoder_jax.errors import UserError
from invcoder_jax.records import Pair, Snippet
from invcoder_jax.settings import Settings
from invcoder_jax.stages.inputs import Counts, Inputs

KEPT = ("fenced", "parsed")
DROPPED = ("empty_response", "empty_block", "no_code")
RULES = ("mended", "paper")


def run(settings: Settings, inputs: Inputs, out: StageFolder) -> Counts:
    """Write Snippet rows in parts of `generation.part_rows`; UserError if there is no code."""
    pairs = inputs.folder("corpus").read_all(Pair)
    snippets, counts = preprocess(pairs, settings.preprocess.rules)
    if not snippets:
        raise UserError(
            f"corpus {settings.corpus.source!r} holds no code, preprocess dropped every row "
            f"({counts}); choose a corpus whose responses hold code"
        )
    size = settings.generation.part_rows
    parts = -(-len(snippets) // size)
    out.forget(path.name for path in out.part_files())
    for index in range(parts):
        out.write_part(index, parts, snippets[index * size : (index + 1) * size])
    return counts


def preprocess(pairs: Iterable[Pair], rules: str) -> tuple[list[Snippet], dict[str, int]]:
    """At most one snippet a pair, in order; `rows` is the sum of the KEPT and DROPPED counts.

    Rules "mended" read fences as CommonMark does and refuse prose that happens to parse; "paper"
    does what the released script did, its faults included.
    """
    if rules not in RULES:
        raise UserError(f"preprocess rules are {rules!r}; set them to one of {RULES}")
    extract = _mended if rules == "mended" else _paper
    snippets: list[Snippet] = []
    reasons: list[str] = []
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise UserError(f"pair id {pair.id!r} occurs twice; give every pair an id of its own")
        seen.add(pair.id)
        reason, language, block = extract(pair.response)
        reasons.append(reason)
        if reason in KEPT:
            snippets.append(Snippet.make(pair.id, language, block))
    counts = {reason: reasons.count(reason) for reason in (*KEPT, *DROPPED)}
    return snippets, {"rows": len(reasons), "kept": len(snippets), **counts}


def _mended(response: str) -> tuple[str, str, str]:
    """(reason, language, fenced block)."""
    if not response.strip():
        return "empty_response", "", ""
    block = first_block(response)
    if block is not None:
        if not block.code.strip():
            return "empty_block", "", ""
        return "fenced", block.language, fence(block.code, block.language)
    if is_python_program(response):
        return "parsed", "python", fence(response.strip("\n"), "python")
    return "no_code", "", ""


def _paper(response: str) -> tuple[str, str, str]:
    found = paper_block(response)
    if found is None:
        return "no_code", "", ""
    return ("fenced" if "```" in response else "parsed"), found.language, found.block
