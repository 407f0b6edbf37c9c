"""Tokenizers: golden encodings, special ids, BOS and EOS, and the GGUF's against transformers."""

import json

import pytest
from tokenizers import pre_tokenizers

from invcoder_jax import tokenization
from invcoder_jax.errors import UserError
from invcoder_jax.tokenization import (
    byte_tokenizer,
    encode_example,
    load_tokenizer,
    tokenizer_from_gguf,
)

SEPARATOR = "\n__ggml_vocab_test__\n"
# folder: golden name, bos, eos, pad, is BOS added, first ids of Yes and No, ids
FAMILIES = {
    "codellama": ("llama-spm", 1, 2, 2, True, 3869, 1939, 32000),
    "deepseek_coder": ("deepseek-coder", 32013, 32014, 32014, True, 5652, 3221, 32256),
    "qwen2_5": ("qwen2", 151643, 151645, 151643, False, 9454, 2753, 151665),
    "starcoder2": ("starcoder", 0, 0, 0, False, 10933, 2042, 49152),
}


def golden_texts(data_folder, name: str = "qwen2") -> list[str]:
    with open(data_folder / "tokenizers" / "golden" / f"{name}.inp", newline="") as file:
        return file.read().split(SEPARATOR)


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf):
    """(our tokenizer, the GGUF's fields)."""
    from gguf import GGUFReader

    reader = GGUFReader(smollm2_gguf)
    names = [name for name in reader.fields if name.startswith("tokenizer.")]
    fields = {name: reader.fields[name].contents() for name in names}
    return tokenizer_from_gguf(fields), fields


@pytest.mark.parametrize("folder", FAMILIES)
def test_a_tokenizer_file_gives_its_golden_ids(data_folder, folder):
    name, bos, eos, pad, add_bos, yes, no, size = FAMILIES[folder]
    tokenizer = load_tokenizer(data_folder / "tokenizers" / folder)
    with open(data_folder / "tokenizers" / "golden" / f"{name}.out") as file:
        golden = [[int(i) for i in line.split()] for line in file.read().split("\n")]
    texts = golden_texts(data_folder, name)
    assert len(texts) == 47
    for text, ids in zip(texts, golden, strict=True):
        assert tokenizer.encode(text) == ids
    found = (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id, tokenizer.add_bos)
    assert found == (bos, (eos,), pad, add_bos)
    assert (tokenizer.yes_no().yes_id, tokenizer.yes_no().no_id) == (yes, no)
    assert tokenizer.vocab_size == size


def test_the_gguf_tokenizer_equals_transformers(smollm2, smollm2_gguf, data_folder):
    pytest.importorskip("torch", reason="transformers reads a GGUF with torch only")
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(str(smollm2_gguf.parent), gguf_file=smollm2_gguf.name)
    texts = golden_texts(data_folder)
    with open(tokenization.__file__, encoding="utf-8") as file:
        texts += [file.read(), "<|im_start|>user\nx = 1234\t# 3.14e-10<|im_end|>\n", "a  b\r\n\n\n"]
    odd = [t for t in texts if any(c.isnumeric() and not c.isascii() for c in t)]
    for text in (t for t in texts if t not in odd):
        assert smollm2[0].encode(text) == reference.encode(text, add_special_tokens=False)
    # transformers' converter leaves out the digit split of "smollm", which shows in " ½" only.
    assert len(odd) == 1
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    assert smollm2[0].encode(odd[0]) == reference.encode(odd[0], add_special_tokens=False)


def test_the_gguf_tokenizer_knows_its_special_tokens(smollm2):
    tokenizer = smollm2[0]
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2,), 2)
    assert not tokenizer.add_bos
    assert tokenizer.vocab_size == 49152
    assert tokenizer.encode("<|im_start|>hi<|im_end|>")[::2] == [1, 2]
    assert tokenizer.decode(tokenizer.encode("<|im_start|>hi 12<|im_end|>")) == "hi 12"
    assert len(tokenizer.encode("1234")) == 4


def test_another_kind_of_gguf_tokenizer_is_refused(smollm2):
    fields = {**smollm2[1], "tokenizer.ggml.pre": "deepseek-coder"}
    with pytest.raises(UserError, match="deepseek-coder"):
        tokenizer_from_gguf(fields)


def test_a_saved_tokenizer_loads_the_same(smollm2, tmp_path):
    for number, tokenizer in enumerate((smollm2[0], byte_tokenizer())):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizer.save(folder)
        again = load_tokenizer(folder)
        text = "def f(x):\n\treturn 'é' + <|im_end|> 1234\n"
        assert again.encode(text) == tokenizer.encode(text)
        for name in ("bos_id", "eos_ids", "pad_id", "add_bos", "vocab_size"):
            assert getattr(again, name) == getattr(tokenizer, name)


def test_the_byte_tokenizer_gives_bytes():
    tokenizer = byte_tokenizer()
    text = "".join(map(chr, range(300))) + "😀\r\n"
    assert tokenizer.encode(text) == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("<|bos|>a<|eos|><|pad|>") == [256, 97, 257, 258]
    assert tokenizer.vocab_size == 259
    found = tokenizer.yes_no()
    assert (found.yes_tokens, found.no_tokens) == (tuple(b"Yes"), tuple(b"No"))
    assert (found.yes_id, found.no_id) == (ord("Y"), ord("N"))


def test_an_example_is_bos_prompt_response_eos_encoded_apart(data_folder):
    llama = load_tokenizer(data_folder / "tokenizers" / "codellama")
    example = encode_example(llama, "Hi\n", "Yes", 99)
    prompt = llama.encode("Hi\n")
    # "▁Yes", the piece with its own space: what a response apart from its prompt begins with
    assert example.tokens == (1, *prompt, 3869, 2)
    assert example.prompt_length == 1 + len(prompt)
    assert not example.cut


def test_an_example_is_cut_at_the_right():
    tokenizer = byte_tokenizer()
    whole = encode_example(tokenizer, "ab", "cd", 6)
    assert whole.tokens == (256, 97, 98, 99, 100, 257) and not whole.cut
    cut = encode_example(tokenizer, "ab", "cd", 5)
    assert (cut.tokens, cut.prompt_length, cut.cut) == (whole.tokens[:5], 3, True)
    assert encode_example(tokenizer, "ab", "cd", 2).prompt_length == 2


def test_special_ids_come_from_the_folders_configs(tmp_path):
    byte_tokenizer().save(tmp_path)
    (tmp_path / "tokenizer_meta.json").unlink()
    named = {"bos_token": None, "eos_token": {"content": "<|eos|>"}, "pad_token": "<|pad|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 256]}))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 258, "eos_token_id": 257}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.add_bos) == (None, (257, 256), False)
    assert tokenizer.vocab_size == 258  # the model has no embedding for <|pad|>
    assert tokenizer.pad_id == 257
    assert tokenizer.with_bos([5]) == [5]


def test_a_bad_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{nope")
    with pytest.raises(UserError, match="not JSON"):
        load_tokenizer(tmp_path)
    byte_tokenizer().save(tmp_path)
    (tmp_path / "tokenizer_meta.json").unlink()
    with pytest.raises(UserError, match="no end-of-text token"):
        load_tokenizer(tmp_path)


def test_an_unpaired_surrogate_is_refused():
    with pytest.raises(UserError, match="surrogate"):
        byte_tokenizer().encode("a\ud800b")
