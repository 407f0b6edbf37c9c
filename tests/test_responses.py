"""Where a response ends and what its text and tokens are."""

from invcoder_jax.generation.engine import Completion, Request
from invcoder_jax.generation.responses import Response
from invcoder_jax.settings import SamplingSettings
from invcoder_jax.tokenization import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_ids[0]


def respond(
    text: str, *, stop: tuple[str, ...] = (), forced: str = "", chunk: int = 3, limit: int = 64
) -> Completion | None:
    """What becomes of a response whose sampled tokens say `text`, `chunk` tokens a sync."""
    sampling = SamplingSettings(stop=stop, max_new_tokens=limit)
    request = Request("a", (1,), 2, tuple(TOKENIZER.encode(forced)))
    response, tokens = Response(request), TOKENIZER.encode(text)
    for start in range(0, len(tokens), chunk):
        completion = response.take(tokens[start : start + chunk], TOKENIZER, sampling)
        if completion is not None:
            return completion
    return None


def test_a_response_goes_on_without_stop_eos_or_limit():
    assert respond("hello world", stop=("```",)) is None


def test_a_stop_string_across_syncs_is_cut_off():
    for chunk in (1, 2, 3, 4, 7, 16):
        found = respond("abc```def", stop=("```",), chunk=chunk)
        assert found == Completion("a", 2, "abc", tuple(TOKENIZER.encode("abc")), "stop")


def test_the_first_of_several_stop_strings_counts():
    assert respond("one END two STOP", stop=("STOP", "END"), chunk=16).text == "one "


def test_eos_ends_and_is_no_token():
    found = respond("ab<|eos|>")
    assert found == Completion("a", 2, "ab", (97, 98), "eos")


def test_a_stop_string_before_eos_is_a_stop():
    assert respond("ab#<|eos|>", stop=("#",), chunk=9).finish_reason == "stop"


def test_the_limit_counts_sampled_tokens_only():
    found = respond("abc", forced="forced ", limit=3)
    assert (found.text, found.finish_reason) == ("forced abc", "length")
    assert len(found.token_ids) == len("forced abc")


def test_eos_as_the_last_allowed_token_is_eos():
    assert respond("abc<|eos|>", limit=4, chunk=4).finish_reason == "eos"


def test_a_stop_string_in_the_forced_part_is_kept():
    found = respond("x``y```", forced="```py\n", stop=("```",))
    assert found.text == "```py\nx``y"


def test_a_stop_string_around_a_special_token_is_found_at_the_end():
    found = respond("ab`<|pad|><|pad|><|pad|><|pad|>``c", stop=("```",), chunk=2, limit=9)
    assert (found.text, found.finish_reason) == ("ab", "stop")


def test_characters_of_several_tokens_count_as_one():
    found = respond("né→😀#rest", stop=("#",), chunk=1)
    assert found.text == "né→😀"
    assert TOKENIZER.decode(found.token_ids) == "né→😀"


def test_a_token_that_straddles_the_stop_string_is_left_out():
    """One token "b#" of a tokenizer with a merge: text keeps the "b", token_ids can't."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    vocab = {"a": 0, "b": 1, "#": 2, "b#": 3, "end": 4}
    backend = Backend(models.BPE(vocab=vocab, merges=[("b", "#")]))
    backend.decoder = decoders.Fuse()
    tokenizer = type(TOKENIZER)(backend, bos_id=None, eos_ids=(4,), pad_id=4, add_bos=False)
    sampling = SamplingSettings(stop=("#",))
    found = Response(Request("a", (0,))).take([0, 3, 0], tokenizer, sampling)
    assert found == Completion("a", 0, "ab", (0,), "stop")


def test_each_token_is_decoded_a_bounded_number_of_times():
    class Counting(type(TOKENIZER)):
        def decode(self, ids):
            ids = list(ids)
            counts.append(len(ids))
            return super().decode(ids)

    counts: list[int] = []
    fields = ("backend", "bos_id", "eos_ids", "pad_id", "add_bos")
    tokenizer = Counting(**{name: getattr(TOKENIZER, name) for name in fields})
    sampling, response = (
        SamplingSettings(stop=("```",), max_new_tokens=4096),
        Response(Request("a", (1,))),
    )
    for _ in range(256):
        response.take([97] * 16, tokenizer, sampling)
    assert sum(counts) < 3 * 4096
