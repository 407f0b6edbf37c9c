"""Bad input gives one clear sentence and exit status 2, and nothing that was finished is lost."""

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from processes import REPOSITORY, TINY, command, environment, invcoder, run_tiny
from safetensors.numpy import save_file

from invcoder_jax import cli

PROSE = [{"instruction": f"Say {n}.", "response": f"I say {n}, gladly."} for n in range(30)]


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence with which a command refuses its input."""
    capsys.readouterr()
    status = cli.main([str(argument) for argument in arguments])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("invcoder: ")]
    assert status == cli.USER_ERROR, said
    assert len(said) == 1
    return said[0]


def preprocess(capsys, tmp_path: Path, name: str, content: bytes) -> str:
    path = tmp_path / name
    path.write_bytes(content)
    return refused(capsys, "preprocess", f"--input={path}", f"--output={tmp_path}/out.jsonl")


GOOD = b'{"instruction": "Add.", "response": "```python\\nx = 1\\n```"}\n'
CORPORA = {
    "not JSON": ("a.jsonl", GOOD + b"{nope\n", "line 2"),
    "a list row": ("a.jsonl", b"[1]\n", "JSON object"),
    "a missing column": ("a.jsonl", GOOD + b'{"instruction": "x"}\n', "response"),
    "a wrong type": ("a.jsonl", b'{"instruction": "x", "response": 3}\n', "response"),
    "invalid UTF-8": ("a.jsonl", GOOD + b'{"instruction": "\xff"}\n', "UTF-8"),
    "an empty file": ("a.jsonl", b"", "no rows"),
    "a broken gzip": ("a.jsonl.gz", gzip.compress(GOOD * 99)[:-20], "a.jsonl.gz"),
    "no gzip at all": ("a.jsonl.gz", GOOD, "a.jsonl.gz"),
    "an unknown ending": ("a.parquet", GOOD, ".jsonl"),
    "a csv without the columns": ("a.csv", b"question,answer\n1,2\n", "instruction"),
}


@pytest.mark.parametrize("what", CORPORA)
def test_a_bad_corpus_is_refused(capsys, tmp_path, what):
    name, content, said = CORPORA[what]
    assert said in preprocess(capsys, tmp_path, name, content)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_missing_file_is_named(capsys, tmp_path):
    said = refused(capsys, "preprocess", f"--input={tmp_path}/no.jsonl", f"--output={tmp_path}/o")
    assert "no.jsonl" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("fly",), "choose one of run, stage"),
        (("run", f"--config={TINY}"), "workdir"),
        (("run", "--config=configs/none.py", "--workdir=w"), "does not exist"),
        (("run", "--config", "configs/none.py", "--workdir=w"), "does not exist"),
        (("run", "--config=configs/odd.py", "--workdir=w"), "no_such_module"),
        (("run", f"--config={TINY}", "--workdir=w", "--config.train.btach=3"), "batch"),
        (("run", f"--config={TINY}", "--workdir=w", "--config.train.batch=x"), "--help"),
        (("run", f"--config={TINY}", "--workdir=w", "--config.train.batch=3"), "microbatch"),
        (("stage", "dance", f"--config={TINY}", "--workdir=w"), "choose one of"),
        (("stage", f"--config={TINY}", "--workdir=w"), "takes 1"),
        (("status", "--workdir=/nowhere/at/all"), "/nowhere/at/all"),
        (("evaluate", "--benchmark=humaneval", "--output=o"), "--model=REF and --samples=FILE"),
        (("evaluate", "--benchmark=sudoku", "--model=x", "--output=o"), "sudoku"),
        (("generate", "--temperature=hot"), "temperature"),
        (("generate", "--model=x"), "--help"),
    ],
)
def test_a_bad_command_line_is_refused(capsys, tmp_path, monkeypatch, arguments, words):
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "odd.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(capsys, tmp_path):
    said = refused(
        capsys, "run", f"--config={TINY}", f"--workdir={tmp_path}/w", "--config.train.microbatch=1"
    )
    assert "8" in said and "microbatch" in said


def test_a_workdir_of_another_config_is_refused(capsys, tmp_path):
    (tmp_path / "workdir.json").write_text('{"config": "quickstart"}')
    said = refused(capsys, "run", f"--config={TINY}", f"--workdir={tmp_path}")
    assert "belongs to the config 'quickstart', not 'tiny'" in said


def test_a_corpus_with_no_code_is_refused(tmp_path):
    corpus = write_rows(tmp_path / "prose.jsonl", PROSE)
    done = run_tiny(
        tmp_path / "w", f"--config.corpus.source={corpus}", "--config.corpus.min_chars=0"
    )
    assert done.returncode == 2
    assert "no code" in done.stderr.splitlines()[-1]
    assert "no_code=16" in done.stderr or "'no_code': 16" in done.stderr


def test_a_row_longer_than_the_context_is_refused(capsys, tmp_path):
    rows = write_rows(tmp_path / "in.jsonl", [{"id": "long", "prompt": "x" * 5000}])
    for door in ("generate", "score"):
        said = refused(
            capsys, door, "--model=random:tiny", f"--input={rows}", f"--output={tmp_path}/out"
        )
        assert "long" in said and "5000" in said


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": "a"}], "['id', 'prompt']"),
        ([{"id": 1, "prompt": "x"}], "column id is a int"),
        ([{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}], "an id of its own"),
        ([], "holds no rows"),
    ],
)
def test_bad_prompt_rows_are_refused(capsys, tmp_path, rows, words):
    path = write_rows(tmp_path / "in.jsonl", rows)
    said = refused(
        capsys, "generate", "--model=random:tiny", f"--input={path}", f"--output={tmp_path}/out"
    )
    assert words in said


def load(capsys, tmp_path: Path, ref: object) -> str:
    rows = write_rows(tmp_path / "in.jsonl", [{"id": "a", "prompt": "x"}])
    return refused(
        capsys, "generate", f"--model={ref}", f"--input={rows}", f"--output={tmp_path}/out"
    )


def test_a_gguf_of_another_architecture_is_refused(capsys, tmp_path):
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "mamba" in load(capsys, tmp_path, path)
    path.write_bytes(b"GGUF" + b"\0" * 8)
    assert "model.gguf" in load(capsys, tmp_path, path)


def test_a_truncated_safetensors_file_is_refused(capsys, tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    config = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 128, "hidden_act": "silu",
        "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {"model.embed_tokens.weight": np.zeros((64, 32), np.float32)}, folder / "m.safetensors"
    )
    whole = (folder / "m.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    (folder / "m.safetensors").unlink()
    assert "model.safetensors" in load(capsys, tmp_path, folder)


def test_no_bubblewrap_is_refused(tmp_path):
    samples = write_rows(tmp_path / "s.jsonl", [{"task_id": "HumanEval/0", "solution": "x = 1"}])
    (tmp_path / "bin").mkdir()
    done = invcoder(
        "evaluate", "--benchmark=humaneval", f"--samples={samples}", f"--output={tmp_path}/o",
        PATH=str(tmp_path / "bin"),
    )  # fmt: skip
    assert done.returncode == 2
    assert "apt-get install bubblewrap" in done.stderr.splitlines()[-1]
    assert "--allow_unsandboxed" in done.stderr.splitlines()[-1]


def in_bubblewrap(mount: list[str], script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bwrap", "--dev-bind", "/", "/", *mount, "sh", "-c", script],
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("kilobytes", [8, 400])
def test_a_full_disk_is_said_and_finished_parts_stay(tmp_path, kilobytes):
    small = tmp_path / "small"
    small.mkdir()
    run = " ".join(command("run", f"--config={TINY}", f"--workdir={small}/w"))
    done = in_bubblewrap(
        ["--size", str(kilobytes * 1024), "--tmpfs", str(small)],
        f"{run}; echo status=$?; find {small} -name 'part-*'; find {small} -name '.*.tmp'",
    )
    assert "status=2" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("invcoder: ") and ("full" in last or "space" in last)
    assert ".tmp" not in done.stdout
    assert kilobytes < 100 or "corpus/part-00000" in done.stdout


def test_a_read_only_workdir_is_refused(tmp_path):
    run = " ".join(command("run", f"--config={TINY}", f"--workdir={tmp_path}/w"))
    done = in_bubblewrap(["--ro-bind", str(tmp_path), str(tmp_path)], f"{run}; echo status=$?")
    assert "status=2" in done.stdout
    assert "can be written" in done.stderr.splitlines()[-1]
