"""Settings: every committed config builds, and a bad value says which, why and what to do."""

import json
from pathlib import Path

import pytest

from configs import base, quickstart, tiny
from invcoder_jax.errors import UserError
from invcoder_jax.settings import from_config, what


@pytest.mark.parametrize("config", [quickstart, tiny])
def test_a_committed_config_builds(config):
    assert from_config(config.get_config()).model.base


def test_a_variant_file_only_says_what_differs():
    for name in ("quickstart", "tiny"):
        text = (Path(base.__file__).parent / f"{name}.py").read_text()
        full, variant = (
            base.get_config(),
            (quickstart if name == "quickstart" else tiny).get_config(),
        )
        for line in text.splitlines():
            if line.strip().startswith("config.") and "=" in line:
                path = line.split("=")[0].strip().removeprefix("config.").split(".")
                before, after = full, variant
                for part in path:
                    before, after = before[part], after[part]
                assert before != after, f"{name}: {'.'.join(path)} repeats the base value {after!r}"


BAD = [
    ("train.batch", 6, "does not divide into microbatches of 4"),
    ("train.schedule", "cosine", "one of ('linear', 'constant')"),
    ("train.learning_rate", 0.0, "set it above 0"),
    ("train.length_buckets", (64,), "append 768"),
    ("summarize.temperature", -1.0, "0 (greedy) or more"),
    ("summarize.top_p", 1.5, "above 0 and at most 1"),
    ("summarize.stop", ("",), "must not be empty"),
    ("select.top", 99, "lower select.top"),
    ("mesh.train", (1, 1), "three sizes"),
    ("evaluation.benchmarks", ("humanevil",), "one of ('humaneval',)"),
    ("preprocess.rules", "loose", "one of ('mended', 'paper')"),
    ("corpus.source", "", "name a corpus"),
    ("generation.prompt_buckets", (512, 256), "rising"),
    ("rounds", 0, "1 or more"),
]


@pytest.mark.parametrize(("field", "value", "said"), BAD)
def test_a_bad_value_is_named_with_its_rule(field, value, said):
    config = tiny.get_config()
    with config.unlocked():
        config.train.microbatch = 4
        *sections, name = field.split(".")
        at = config
        for section in sections:
            at = at[section]
        at[name] = value
    with pytest.raises(UserError) as caught:
        from_config(config)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_or_missing_field_is_named():
    config = tiny.get_config()
    config.train.learning_rat = 1.0
    del config.train.batch
    with pytest.raises(UserError, match=r"learning_rat.*batch"):
        from_config(config)


def test_a_wrong_type_is_named():
    config = tiny.get_config().to_dict()
    config["train"]["batch"] = "8"
    with pytest.raises(UserError, match="config.train.batch is '8', a str; it must be a int"):
        from_config(type(tiny.get_config())(config))


def test_fields_marked_how_are_no_part_of_a_key():
    train = from_config(tiny.get_config()).train
    assert "batch" in what(train)
    assert not {"microbatch", "length_buckets", "checkpoint_every"} & set(what(train))
    json.dumps(what(train))
