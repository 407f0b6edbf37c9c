"""A stage's folder: whole files only, resume, set aside and restored, claimed by one process."""

import json
import subprocess
import sys

import pytest

from invcoder_jax.artifacts import (
    StageFolder,
    StageKey,
    claimed,
    read_rows,
    write_atomic,
    write_rows,
)
from invcoder_jax.errors import UserError
from invcoder_jax.records import Pair, content_id, from_json, to_json

ROWS = [Pair.make(f"Add {n}.", f"x + {n}", "test") for n in range(5)]


def key(**settings):
    return StageKey("preprocess", settings, {"corpus": "abc"})


def filled(path, **settings):
    folder = StageFolder(path)
    folder.begin(key(**settings))
    folder.write_part(0, 2, ROWS[:3])
    folder.write_part(1, 2, ROWS[3:])
    folder.finish({"kept": 5}, seconds=0.5)
    return folder


def test_rows_come_back_in_order(tmp_path):
    folder = filled(tmp_path / "s", rules="mended")
    assert list(folder.read_all(Pair)) == ROWS
    assert folder.manifest()["rows"] == 5
    assert folder.parts == 2


def test_a_finished_stage_is_done_under_its_own_key_only(tmp_path):
    filled(tmp_path / "s", rules="mended")
    assert StageFolder(tmp_path / "s").begin(key(rules="mended")).done
    begun = StageFolder(tmp_path / "s").begin(key(rules="paper"))
    assert not begun.done
    assert begun.reasons == ("rules 'mended' -> 'paper'",)


def test_a_superseded_stage_comes_back_when_its_setting_does(tmp_path):
    filled(tmp_path / "s", rules="mended")
    filled(tmp_path / "s", rules="paper")
    begun = StageFolder(tmp_path / "s").begin(key(rules="mended"))
    assert begun.done and begun.restored
    assert list(StageFolder(tmp_path / "s").read_all(Pair)) == ROWS


def test_a_half_done_stage_keeps_its_parts_and_loses_temporary_files(tmp_path):
    folder = StageFolder(tmp_path)
    folder.begin(key())
    folder.write_part(0, 2, ROWS[:3])
    (tmp_path / ".part-00001-of-00002.jsonl.77.tmp").write_text('{"id": "ha')
    begun = folder.begin(key())
    assert not begun.done and folder.has_part(0, 2) and not folder.has_part(1, 2)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, ROWS)
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]  # the failure is the point
    assert read_rows(path, Pair) == ROWS
    assert list(tmp_path.iterdir()) == [path]


def test_the_output_sha_follows_the_rows(tmp_path):
    one, two = filled(tmp_path / "a", rules=1), filled(tmp_path / "b", rules=2)
    assert one.manifest()["output_sha"] == two.manifest()["output_sha"]
    two.write_part(1, 2, ROWS[:1])
    two.finish({}, 0.0)
    assert one.manifest()["output_sha"] != two.manifest()["output_sha"]


def test_a_workdir_belongs_to_one_config(tmp_path):
    with claimed(tmp_path / "w", "tiny"):
        pass
    with pytest.raises(UserError, match="belongs to the config 'tiny', not 'base'"):
        with claimed(tmp_path / "w", "base"):
            pass


def test_a_folder_with_other_files_is_no_workdir(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        with claimed(tmp_path, "tiny"):
            pass


def test_two_processes_cannot_hold_one_workdir(tmp_path):
    code = (
        "import sys; from pathlib import Path; from invcoder_jax.artifacts import claimed\n"
        "with claimed(Path(sys.argv[1]), 'tiny'): pass"
    )
    with claimed(tmp_path / "w", "tiny"):
        found = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "w"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert found.returncode != 0
    assert "in use by another process" in found.stderr


def test_content_ids_tell_lists_of_texts_apart():
    assert content_id("ab", "c") != content_id("a", "bc")
    assert content_id("ab", "c") == content_id("ab", "c")
    assert len({content_id(str(n)) for n in range(1000)}) == 1000


def test_a_row_survives_json():
    row = ROWS[0]
    assert from_json(Pair, json.loads(json.dumps(to_json(row)))) == row


def test_a_row_with_wrong_columns_is_refused_by_name():
    with pytest.raises(UserError, match=r"missing columns \['response'\], unknown columns \['x'\]"):
        from_json(Pair, {"id": "1", "instruction": "a", "x": 1})
