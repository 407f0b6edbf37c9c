"""Corpora: files, code, the Hub and TFDS; no row is dropped without being counted."""

import ast
import csv
import gzip
import json
import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from invcoder_jax.codeblocks import first_block
from invcoder_jax.corpora.code_folder import read_code_folder, read_stdlib
from invcoder_jax.corpora.sources import Corpus, read_corpus, read_pairs_file
from invcoder_jax.corpora.tfds_builder import LABEL_FILE, open_pairs, publish
from invcoder_jax.errors import UserError
from invcoder_jax.records import Pair
from invcoder_jax.settings import CorpusSettings

ROWS = [{"instruction": f"Write {n}.", "response": f"print({n})"} for n in range(40)]


def settings(source: object, limit=0, heldout=0, max_chars=0, min_chars=0) -> CorpusSettings:
    return CorpusSettings(str(source), limit, heldout, max_chars, min_chars)


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def counted(corpus: Corpus) -> bool:
    kept = len(corpus.train) + len(corpus.heldout)
    return kept + sum(corpus.dropped.values()) == corpus.seen


def test_every_file_form_gives_the_same_pairs(tmp_path):
    want = [("Add\n\n1, 2", "x = 1\n\ny = 'é'"), ('Say "no"', "print('no')")]
    rows = [{"instruction": "Add", "input": "1, 2", "response": want[0][1]}]
    rows += [{"instruction": 'Say "no"', "input": "", "response": "print('no')"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    contents = {"a.jsonl": lines, "b.json": lines + "\n", "c.json": json.dumps(rows, indent=2)}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    with open(tmp_path / "d.csv", "w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    write(tmp_path / "e.jsonl", [{"instruction": i, "output": o} for i, o in want])
    write(tmp_path / "f.jsonl", [{**rows[0], "more": 3}, {**rows[1], "input": None}])
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 9
    for path in paths:
        assert [(p.instruction, p.response) for p in read_pairs_file(path)] == want, path.name


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"instruction": "x", "response": "y"}\n{"instruction": 3, "response": "y"}',
         "line 2: column instruction is a int"),
        ("a.jsonl", b'{"instruction": "x", "response": null}', "line 1: column response is a None"),
        ("a.jsonl", b'{"instruction": "x"}', "line 1: found the columns ['instruction']"),
        ("a.jsonl", b'{"instruction": "x", "response": "\\ud800y"}', "unpaired surrogate"),
        ("a.json", b'[{"instruction": "x", "response": "y"}, 5]', "row 2: found a int"),
        ("a.json", b'[{"instruction": "x", "response": "y"}', "is not JSON"),
        ("a.json", b'[{"instruction": "\xff"}]', "line 1: byte 0xff is not valid UTF-8"),
        ("a.json", b"[]", "no rows"),
        ("a.csv", b"instruction,response\nx,y,z\n", "line 2: 3 columns"),
        ("a.csv", b'instruction,response\n"x,y\n', "not CSV"),
        ("a.csv", b"instruction,response\nx\xff,y\n", "line 2: byte 0xff"),
        ("a.csv", b"", "no rows"),
        ("a.csv.gz", b"nope", "not a whole gzip"),
        ("a.txt", b"x", "ends in '.txt'"),
        ("a.jsonl", b'{"instruction": "x", "output": {"a.py": 1}}', "column a.py is a int"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_refused_with_its_place(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_pairs_file(path)
    assert words in str(refused.value)
    assert name in str(refused.value)


def test_a_missing_file_or_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl"):
        read_corpus(settings(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="none"):
        read_corpus(settings(f"folder:{tmp_path}/none"))
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(UserError, match=r"x\.jsonl"):
        read_corpus(settings(tmp_path / "x.jsonl"))


def test_equal_rows_are_kept_with_ids_of_their_own(tmp_path):
    corpus = read_corpus(settings(write(tmp_path / "a.jsonl", ROWS + ROWS[:5] + ROWS[:5])))
    assert len({pair.id for pair in corpus.train}) == 50
    assert not corpus.dropped


def test_heldout_pairs_do_not_depend_on_the_limit_and_never_train(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS + ROWS)
    heldout = read_corpus(settings(path, heldout=7)).heldout
    assert len(heldout) == 7
    for limit in (1, 5, 30):
        corpus = read_corpus(settings(path, limit=limit, heldout=7))
        assert corpus.heldout == heldout
        assert len(corpus.train) == limit
        assert not {p.response for p in heldout} & {p.response for p in corpus.train}
        assert corpus.dropped["copy_of_heldout"] == 7
        assert counted(corpus)


def test_a_smaller_limit_takes_a_mixed_subset_in_the_order_of_the_file(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    large = [p.instruction for p in read_corpus(settings(path, limit=20)).train]
    small = [p.instruction for p in read_corpus(settings(path, limit=10)).train]
    order = [row["instruction"] for row in ROWS]
    assert set(small) < set(large)
    assert large == sorted(large, key=order.index)
    assert set(small) != set(order[:10])


def test_too_few_pairs_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS[:5])
    for heldout in (5, 6):
        with pytest.raises(UserError, match=f"5 usable pairs .* corpus.heldout {heldout}"):
            read_corpus(settings(path, heldout=heldout))
    assert len(read_corpus(settings(path, heldout=4)).train) == 1


def test_no_row_is_dropped_without_being_counted(tmp_path):
    random.seed(3)
    texts = ["", "  ", "x", "short", "a longer text " * 3, "a very long text " * 20]
    for trial in range(60):
        rows = [
            {"instruction": random.choice(texts), "response": random.choice(texts)}
            for _ in range(random.randint(1, 40))
        ]
        rows.append({"instruction": "at least", "response": f"one usable row {trial}"})
        path = write(tmp_path / "a.jsonl", rows)
        limit, heldout = random.randint(0, 9), random.choice([0, 0, 1])
        chosen = settings(path, limit, heldout, random.choice([0, 90]), random.choice([0, 6]))
        try:
            corpus = read_corpus(chosen)
        except UserError:
            assert heldout == 1
            continue
        assert corpus.seen == len(rows)
        assert counted(corpus)
        for pair in corpus.train + corpus.heldout:
            assert pair.instruction.strip() and len(pair.response) >= chosen.min_chars


def test_the_real_corpora_are_read(data_folder):
    folder = data_folder / "corpora"
    rows = {"gpteacher_codegen.json.gz": 4535, "exercism_pairs.jsonl.gz": 1961}
    for name, count in {**rows, "codeio.jsonl.gz": 3002}.items():
        corpus = read_corpus(settings(folder / name, heldout=128))
        assert corpus.seen == count
        assert len(corpus.heldout) == 128
        assert counted(corpus)
    codeio = read_pairs_file(folder / "codeio.jsonl.gz")[0]
    assert "porosity" in codeio.instruction and "Input:" in codeio.instruction
    assert "def main_solution" in codeio.response
    exercism = read_pairs_file(folder / "exercism_pairs.jsonl.gz")[0]
    block = first_block(exercism.response)
    assert block and block.language == "python" and "def accumulate" in block.code


CODE = '''
import os

def add(x, y=1):
    """Add two numbers and return the sum."""

    # a comment stays
    return x + y

@staticmethod
async def wait(*, seconds: float) -> None:
    \'\'\'Wait for some seconds.

    Then go on.
    \'\'\'
    await sleep(seconds)

def one(): "A docstring on the line of the name."; return 1

def twice(): return 2
def no_words():
    """Nowordshereatallinthis."""
    return 3
def short():
    """Too short."""
    return 4
def later():
    """This will be written some day."""
    raise NotImplementedError("later")
def __getattr__(name):
    """Look up a name in this module."""
    return name
def plus(x, y=1):
    """Add two numbers and return the sum."""
    return y + x

class A:
    def method(self):
        """A method is not taken from its class."""
        return self
'''


def test_functions_with_docstrings_become_pairs(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "pkg" / "code.py").write_text(CODE)
    (tmp_path / ".hidden" / "more.py").write_text(CODE)
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    (tmp_path / "old.py").write_text("print 'x'\n")
    pairs, dropped = read_code_folder(tmp_path, "mine")
    assert [p.source for p in pairs] == [f"mine/pkg/code.py:{n}" for n in ("add", "wait", "one")]
    assert pairs[0].instruction == (
        "Write a Python function `add(x, y=1)`: Add two numbers and return the sum."
    )
    assert pairs[0].response == (
        "```python\ndef add(x, y=1):\n    # a comment stays\n    return x + y\n```"
    )
    assert pairs[1].instruction.startswith(
        "Write a Python async function `wait(*, seconds: float)`: Wait for some seconds.\n\nThen"
    )
    assert pairs[1].response.startswith("```python\n@staticmethod\nasync def wait(*, seconds")
    assert pairs[2].response == "```python\ndef one():\n    return 1\n```"
    assert dropped == {
        "no_docstring": 1, "short_docstring": 2, "trivial_body": 1, "dunder": 1,
        "duplicate_docstring": 1, "not_utf8": 1, "not_python": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def stdlib():
    return read_stdlib()


def test_the_standard_library_gives_the_functions_without_their_docstrings(stdlib):
    pairs, dropped = stdlib
    assert len(pairs) > 1000
    root = Path(sysconfig.get_paths()["stdlib"])
    random.seed(6)
    files = random.sample(sorted({pair.source.rsplit(":", 1)[0] for pair in pairs}), 40)
    trees = {}
    for pair in (p for p in pairs if p.source.rsplit(":", 1)[0] in files):
        where, name = pair.source.removeprefix("stdlib/").rsplit(":", 1)
        assert not {"test", "tests", "idlelib", "lib2to3"} & set(Path(where).parts)
        if where not in trees:
            trees[where] = ast.parse((root / where).read_bytes())
        functions = [f for f in trees[where].body if getattr(f, "name", None) == name]
        block = first_block(pair.response)
        assert block and block.language == "python"
        bodies = [[ast.dump(s) for s in f.body[1:]] for f in functions]
        assert [ast.dump(s) for s in ast.parse(block.code).body[0].body] in bodies, pair.source
    assert dropped["no_docstring"] > 100


def test_the_standard_library_as_a_corpus_is_counted_and_the_same_each_time(stdlib, monkeypatch):
    monkeypatch.setattr("invcoder_jax.corpora.sources.read_stdlib", lambda: stdlib)
    chosen = settings("stdlib", limit=48, heldout=32, max_chars=700, min_chars=80)
    before = dict(stdlib[1])
    corpus = read_corpus(chosen)
    assert (len(corpus.train), len(corpus.heldout)) == (48, 32)
    assert corpus.seen == len(stdlib[0]) + sum(before.values())
    assert counted(corpus)
    modules = {pair.source.split(":")[0] for pair in corpus.train}
    assert len(modules) > 20


def test_a_dataset_in_the_layout_of_the_hub_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", ROWS)
    source = f"hub:{tmp_path}/set"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    corpus = read_corpus(settings(source, heldout=3))
    assert corpus.seen == 40 and counted(corpus)
    assert {(p.instruction, p.response) for p in corpus.train + corpus.heldout} == {
        (row["instruction"], row["response"]) for row in ROWS
    }
    with pytest.raises(UserError, match="nosplit"):
        read_corpus(settings(f"{source}@nosplit"))


PAIRS = [Pair.make(f"Do {n}\0.", f"print({n!r}, 'é😀')\n\0\0", "here") for n in range(33)]


def test_published_pairs_are_read_by_random_access(tmp_path):
    folder = tmp_path / "a" / "pairs"
    publish(PAIRS, folder)
    opened = open_pairs(folder)
    assert len(opened) == 33
    assert [opened[n] for n in (32, 0, 7, -1)] == [PAIRS[n] for n in (32, 0, 7, -1)]
    with pytest.raises(IndexError):
        opened[33]


def test_publishing_and_reading_need_no_tensorflow(tmp_path):
    program = (
        "import sys; from pathlib import Path; from invcoder_jax.corpora import tfds_builder as b;"
        "from invcoder_jax.records import Pair; folder = Path(sys.argv[1]);"
        "b.publish([Pair.make('x', 'y')], folder); assert b.open_pairs(folder)[0].response == 'y';"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "pairs")]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_pairs_give_the_same_bytes(tmp_path):
    for name in "ab":
        publish(PAIRS, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_half_written_folder_is_found_and_made_again(tmp_path):
    folder = tmp_path / "pairs"
    publish(PAIRS, folder)
    data = next(folder.glob("*.array_record*"))
    for damage in (lambda: (folder / LABEL_FILE).unlink(), lambda: data.write_bytes(b"half")):
        damage()
        with pytest.raises(UserError, match="no whole set of pairs"):
            open_pairs(folder)
        publish(PAIRS, folder)
        assert open_pairs(folder)[5] == PAIRS[5]


def test_whole_pairs_are_not_written_again_and_others_replace_them(tmp_path):
    publish(PAIRS, tmp_path)
    before = (tmp_path / LABEL_FILE).stat().st_mtime_ns
    publish(list(PAIRS), tmp_path)
    assert (tmp_path / LABEL_FILE).stat().st_mtime_ns == before
    publish(PAIRS[::-1], tmp_path)
    assert open_pairs(tmp_path)[0] == PAIRS[-1]


def test_publishing_touches_no_foreign_folder(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        publish(PAIRS, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(UserError, match="no pairs"):
        publish([], tmp_path / "new")


def test_a_tfds_folder_is_a_corpus(tmp_path):
    publish(PAIRS, tmp_path)
    corpus = read_corpus(settings(f"tfds:{tmp_path}"))
    assert [(p.instruction, p.response) for p in corpus.train] == [
        (p.instruction, p.response) for p in PAIRS
    ]
    with pytest.raises(UserError, match="nosplit"):
        read_corpus(settings(f"tfds:{tmp_path}@nosplit"))
