"""The report: tables with honest numbers, a safe and self-contained page, half-finished runs."""

import base64
import csv
import dataclasses
import hashlib
import html.parser
import json
import re

import pytest

from invcoder_jax.artifacts import StageFolder, StageKey, write_json
from invcoder_jax.errors import UserError
from invcoder_jax.records import (
    MARK_LENGTH,
    Candidate,
    Pair,
    Score,
    SelectedPair,
    Snippet,
    content_id,
    dump_line,
)
from invcoder_jax.report import html as report_html
from invcoder_jax.report import write_report
from invcoder_jax.report.reading import STAGES
from invcoder_jax.report.tables import results_table, stage_times, status_table, wilson
from invcoder_jax.tokenization import byte_tokenizer

EVIL = '</script><img src=x onerror=alert(1)> <!-- "quoted" & https://evil.example/x | `tick`'
LOSSES = {"base": 1.50004, "teacher": 1.25, "inversecoder": 1.2}
PASSED = {"base": 0, "teacher": 2, "inversecoder": 3}
INPUTS = {
    "00_finetune_teacher": ("base", "corpus"),
    "01_preprocess": ("corpus",),
    "02_summarize": ("teacher", "preprocess"),
    "03_self_evaluate": ("teacher", "preprocess", "summarize"),
    "04_select": ("preprocess", "summarize", "self_evaluate"),
    "05_decontaminate": ("select",),
    "06_finetune_self": ("base", "decontaminate"),
    "07_finetune_original": ("finetune_self", "corpus"),
    "08_benchmark": ("base", "teacher", "finetune_original", "corpus"),
}


class Workdir:
    """A small run written the way the stages write it, up to a stage of choice."""

    def __init__(self, path, pairs=7, candidates=3):
        self.path, self.candidates = path, candidates
        self.settings = {
            "name": "small",
            "seed": 42,
            "rounds": 1,
            "model": {"base": "random:tiny", "teacher": ""},
            "summarize": {"candidates": candidates, "temperature": 0.8},
            "evaluation": {"benchmarks": ["humaneval"], "every": 4},
        }
        self.pairs = [
            Pair.make(f"Add {n}. {EVIL}", f"def add_{n}(x):\n    return x + {n}", "test")
            for n in range(pairs)
        ]
        self.snippets = [
            Snippet.make(p.id, "python", f"```python\n{p.response}\n# {EVIL}\n```")
            for p in self.pairs
        ]
        self.made = [self.candidate(s, k) for s in self.snippets for k in range(candidates)]
        self.scores = [
            Score(c.id, c.snippet_id, c.sample, 1.0, 0.0, (c.sample + 1) / (candidates + 2))
            for c in self.made
        ]
        best = [c for c in self.made if c.sample == candidates - 1]
        self.chosen = [self.selected(c, s) for c, s in zip(best, self.snippets, strict=True)]
        self.shas = {"base": "random:tiny"}

    def candidate(self, snippet, sample):
        text = f"Write a python function, take {sample}. {EVIL}"
        marks = (MARK_LENGTH,) if sample == 0 else ()
        reason = "length" if marks else "stop"
        name = content_id("candidate", snippet.id, str(sample), text)
        return Candidate(name, snippet.id, sample, "Write a python", text, reason, marks)

    def selected(self, candidate, snippet):
        name = content_id("selected", snippet.id, candidate.id)
        score = self.candidates / (self.candidates + 2)
        text = candidate.instruction
        return SelectedPair(name, snippet.id, candidate.id, text, snippet.block, score)

    def stage(self, folder, rows=None, parts=2, counts=None, settings=None, finish=True):
        name = folder.name.partition("_")[2] or folder.name
        out = StageFolder(folder)
        inputs = {n: self.shas[n] for n in INPUTS.get(folder.name, ())}
        out.begin(StageKey(name, settings or {}, inputs))
        rows = rows or []
        size = -(-len(rows) // parts)
        for index in range(parts if rows else 0):
            if finish or index == 0:
                out.write_part(index, parts, rows[index * size : (index + 1) * size])
        if finish:
            out.finish(counts or {}, 61.5, output_sha=content_id(folder.name))
            self.shas["teacher" if name == "finetune_teacher" else name] = content_id(folder.name)
        return out

    def write(self, stages=STAGES):
        self.path.mkdir()
        write_json(self.path / "workdir.json", {"config": "small"})
        write_json(self.path / "config.json", self.settings)
        counts = {"train": len(self.pairs), "heldout": 2, "dropped_too_long": 1234}
        self.stage(self.path / "corpus", self.pairs, counts=counts)
        for name in stages:
            self.write_stage(self.path / "round_0" / name)
        return self.path

    def write_stage(self, folder):
        rows = {
            "01_preprocess": self.snippets,
            "02_summarize": self.made,
            "03_self_evaluate": self.scores,
            "04_select": self.chosen,
            "05_decontaminate": self.chosen[1:],
        }.get(folder.name)
        sampled = {"summarize.temperature": 0.8} if folder.name == "02_summarize" else None
        if "finetune" in folder.name:
            folder.mkdir(parents=True)
            lines = [dump_line({"step": n, "loss": 2.0 - n / 10}) for n in (1, 2, 3, 2, 3, 4)]
            (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 5, "lo')
        if folder.name == "08_benchmark":
            self.write_benchmark(folder)
        out = self.stage(folder, rows, settings=sampled)
        if folder.name == "05_decontaminate":
            held = {"benchmark": "humaneval", "task_id": "HumanEval/7", "kind": "docstring"}
            row = {"id": self.chosen[0].id, **held, "text": EVIL}
            (out.path / "removed.jsonl").write_text(dump_line(row))
        if folder.name == "00_finetune_teacher":
            (out.path / "checkpoint").mkdir()
            byte_tokenizer().save(out.path / "checkpoint")

    def write_benchmark(self, folder):
        models = [{"model": model, "ref": model, **self.result(model)} for model in LOSSES]
        conditions = {"temperature": 0.0, "devices": EVIL}
        write_json_in(folder, "results.json", {"models": models, "conditions": conditions})

    def result(self, model):
        n = PASSED[model]
        humaneval = {
            "benchmark": "humaneval",
            "problems": 41,
            "samples": 41,
            "passed": n,
            "pass@1": n / 41,
            "counts": {"pass": n, "fail": 40 - n, "timeout": 1, "oom": 0, "infra_error": 0},
            "sandbox": "bubblewrap",
            "timeout": 10.0,
        }
        heldout = {"loss": LOSSES[model], "pairs": 2, "tokens": 4321}
        return {"benchmarks": {"humaneval": humaneval}, "heldout": heldout}


def write_json_in(folder, name, data):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / name, data)


class Reader(html.parser.HTMLParser):
    """Tags with attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "source", "input", "br"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with its report: (Workdir, ReportFiles)."""
    workdir = Workdir(tmp_path_factory.mktemp("report") / "small")
    return workdir, write_report([workdir.write()])


@pytest.fixture(scope="module")
def page(finished):
    return finished[1].html.read_text()


def table_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_wilson_interval_equals_scipy():
    # scipy 1.17.1: binomtest(k, n).proportion_ci(method="wilson")
    for passed, n, expected in (
        (2, 41, (0.013480945365169028, 0.1613897887037085)),
        (0, 41, (0.0, 0.08566757018443186)),
        (10, 10, (0.7224672001371109, 1.0)),
        (20, 164, (0.08034811452707125, 0.18085945080713012)),
    ):
        assert wilson(passed / n, n) == pytest.approx(expected, abs=1e-12)


def test_results_table_has_three_rows_with_n_and_interval(finished):
    lines = results_table(finished[0].path).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert cells[0] == ["model", "humaneval pass@1", "95% interval", "held-out loss"]
    heldout = "(2 pairs, 4,321 tokens)"
    assert cells[2] == ["base", "0.0% (0 of 41)", "0.0% to 8.6%", f"1.5000 {heldout}"]
    assert cells[3] == ["M (teacher)", "4.9% (2 of 41)", "1.3% to 16.1%", f"1.2500 {heldout}"]
    assert cells[4][:2] == ["InverseCoder", "7.3% (3 of 41)"]


def test_csv_holds_the_unrounded_numbers(finished):
    rows = table_rows(finished[1].folder / "results.csv")
    assert [row["model"] for row in rows] == ["base", "M (teacher)", "InverseCoder"]
    assert float(rows[0]["heldout_loss"]) == LOSSES["base"]
    assert float(rows[1]["pass@1"]) == 2 / 41
    assert (rows[1]["passed"], rows[1]["problems"]) == ("2", "41")


def test_every_table_parses_back_with_as_many_rows_as_its_markdown(finished):
    names = {path.stem for path in finished[1].tables}
    assert names == {"results", "conditions", "verdicts", "stages", "settings"}
    for name in names:
        markdown = (finished[1].folder / f"{name}.md").read_text()
        lines = [line for line in markdown.splitlines() if line.startswith("|")]
        assert len(table_rows(finished[1].folder / f"{name}.csv")) == len(lines) - 2
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_conditions_hold_those_of_the_sandbox_but_no_measurement(finished):
    rows = {row["condition"]: row["small"] for row in table_rows_of(finished, "conditions")}
    assert rows["humaneval.sandbox"] == '"bubblewrap"'
    assert rows["humaneval.timeout"] == "10.0"
    assert not any("passed" in name or "counts" in name for name in rows)


def table_rows_of(finished, name):
    return table_rows(finished[1].folder / f"{name}.csv")


def test_stages_show_rows_counts_and_seconds(finished):
    rows = {row["stage"]: row for row in table_rows_of(finished, "stages")}
    assert rows["02_summarize"]["rows"] == "21"
    assert float(rows["02_summarize"]["seconds"]) == 61.5
    assert json.loads(rows["corpus"]["counts"])["dropped_too_long"] == 1234
    assert {row["state"] for row in rows.values()} == {"done"}
    assert "dropped too long 1,234" in status_table(finished[0].path)
    assert "02_summarize" in stage_times(finished[0].path)
    assert stage_times(finished[0].path).splitlines()[-1].endswith(" 615.0 s")


def test_page_parses_and_loads_nothing(page):
    reader = Reader(page)
    assert reader.open == []
    assert "http://" not in page and "https://" not in page
    for tag, attributes in reader.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))


def test_rows_written_by_a_model_never_become_markup(page):
    reader = Reader(page)
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    assert not any("onerror" in attributes for attributes in images)
    assert len(reader.scripts) == 2
    data = json.loads(reader.scripts[0])
    assert data[0]["candidates"][0]["text"].endswith(EVIL)
    assert EVIL not in page


def test_embedded_json_is_the_same_data_after_parsing():
    rows = [{"text": EVIL + "\u2028 \U0001f600 \x00 ]]> <!--<script>"}]
    text = report_html.embedded(rows)
    assert json.loads(text) == rows
    assert not set("<>&\u2028") & set(text)


def test_policy_allows_this_script_and_style_only(page):
    reader = Reader(page)
    policy = next(a["content"] for tag, a in reader.tags if tag == "meta" and "http-equiv" in a)
    script = hashlib.sha256(reader.scripts[1].encode()).digest()
    style = hashlib.sha256(page.split("<style>")[1].split("</style>")[0].encode()).digest()
    for digest in (script, style):
        assert f"'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert not any("style" in attributes for _, attributes in reader.tags)


def test_page_holds_each_snippet_with_its_candidates_and_the_chosen_one(finished, page):
    data = json.loads(Reader(page).scripts[0])
    assert [row["id"] for row in data] == [s.id for s in finished[0].snippets]
    for row in data:
        assert [c["chosen"] for c in row["candidates"]] == [False, False, True]
        assert [c["score"] for c in row["candidates"]] == [0.2, 0.4, 0.6]
        assert row["candidates"][0]["marks"] == [MARK_LENGTH]
        assert row["original"].startswith("Add ")
    assert data[0]["removed"] == "holds the docstring of HumanEval/7"
    assert data[1]["removed"] == ""


def test_large_run_embeds_few_snippets_and_says_so(tmp_path):
    files = write_report([Workdir(tmp_path / "many").write(STAGES[:4])], most_shown=3)
    text = files.html.read_text()
    assert len(json.loads(Reader(text).scripts[0])) == 3
    assert "3 of 7 snippets" in text


def test_plots_are_png_files_and_lie_in_the_page(finished, page):
    names = {path.stem for path in finished[1].plots}
    kinds = ("loss_round_0", "scores_round_0", "lengths_round_0", "pass_rates_humaneval")
    assert names == set(kinds)
    for path in finished[1].plots:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG") and b"http" not in data
        assert base64.b64encode(data).decode() in page
    assert "Lengths in tokens." in page


@pytest.mark.parametrize("stages", range(len(STAGES)))
def test_half_finished_run_says_what_is_missing(tmp_path, stages):
    path = Workdir(tmp_path / "half").write(STAGES[:stages])
    text = write_report([path]).html.read_text()
    for name in STAGES[stages:]:
        assert f"not there yet: stage {name}" in text
    assert f"not there yet: stage {STAGES[stages - 1]}" not in text or stages == 0
    assert "not there yet: stage 08_benchmark" in results_table(path)
    assert results_table(path).count("| not there yet") == 6


def test_unfinished_stage_shows_its_parts_and_its_rows(tmp_path):
    workdir = Workdir(tmp_path / "half")
    path = workdir.write(STAGES[:2])
    workdir.stage(path / "round_0" / "02_summarize", workdir.made, finish=False)
    text = write_report([path]).html.read_text()
    assert "not there yet: stage 02_summarize (1 of 2 parts)" in text
    shown = json.loads(Reader(text).scripts[0])
    assert [len(row["candidates"]) for row in shown] == [3, 3, 3, 2, 0, 0, 0]


def test_workdir_without_any_stage_still_has_a_report(tmp_path):
    (tmp_path / "new").mkdir()
    write_json(tmp_path / "new" / "workdir.json", {"config": "small"})
    text = write_report([tmp_path / "new"]).html.read_text()
    assert "not there yet: stage corpus" in text
    assert Reader(text).scripts == []


def test_models_measured_so_far_are_shown_before_the_benchmark_ends(tmp_path):
    workdir = Workdir(tmp_path / "half")
    path = workdir.write(STAGES[:-1])
    role = StageFolder(path / "round_0" / "08_benchmark" / "base")
    inputs = {"base": "random:tiny", "corpus": workdir.shas["corpus"]}
    role.begin(StageKey("benchmark base", {}, inputs))
    write_json(role.path / "results.json", workdir.result("base"))
    role.finish({}, 1.0)
    table = results_table(path)
    assert "| base         | 0.0% (0 of 41)" in table
    assert table.count("| not there yet") == 4


def test_results_made_from_older_inputs_are_called_out_of_date(tmp_path):
    workdir = Workdir(tmp_path / "old")
    path = workdir.write()
    workdir.settings["summarize"]["temperature"] = 0.5
    write_json(path / "config.json", workdir.settings)
    table = results_table(path)
    assert "stage 02_summarize is out of date: summarize.temperature changed since" in table
    assert "stage 08_benchmark is out of date: input finetune_original changed since" in table
    assert "InverseCoder, out of date" in table
    assert "01_preprocess is out" not in table


def test_two_workdirs_stand_side_by_side(tmp_path, finished):
    other = Workdir(tmp_path / "other")
    other.settings["seed"] = 7
    files = write_report([other.write(STAGES[:3]), finished[0].path])
    rows = table_rows(files.folder / "results.csv")
    assert [row["run"] for row in rows] == ["other"] * 3 + ["small"] * 3
    settings = {row["setting"]: row for row in table_rows(files.folder / "settings.csv")}
    assert (settings["seed"]["other"], settings["seed"]["small"]) == ("7", "42")
    assert "| seed (differs) " in (files.folder / "settings.md").read_text()
    page = files.html.read_text()
    assert "stage 08_benchmark" in page and "other: not there yet" in page
    shown = json.loads(Reader(page).scripts[0])
    assert not any(c["chosen"] for row in shown for c in row["candidates"])


def test_workdirs_of_one_folder_name_are_told_apart(tmp_path):
    paths = []
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        paths.append(Workdir(tmp_path / parent / "run").write(()))
    rows = table_rows(write_report(paths).folder / "results.csv")
    assert {row["run"] for row in rows} == {str(path) for path in paths}


def test_given_teacher_is_no_missing_stage(tmp_path):
    workdir = Workdir(tmp_path / "given")
    workdir.settings["model"]["teacher"] = workdir.shas["teacher"] = "some/teacher"
    path = workdir.write(STAGES[1:])
    assert "skipped: M is given, some/teacher" in status_table(path)
    assert "not there yet" not in results_table(path)
    assert "out of date" not in results_table(path)


def test_second_round_has_rows_of_its_own(tmp_path):
    workdir = Workdir(tmp_path / "rounds")
    workdir.settings["rounds"] = 2
    path = workdir.write()
    table = results_table(path)
    assert "| 1     | InverseCoder | not there yet" in table
    assert "not there yet: stage round_1/02_summarize" in table
    assert "skipped: M is the InverseCoder of round_0" in status_table(path)


def test_report_written_again_drops_plots_that_no_longer_hold(tmp_path):
    workdir = Workdir(tmp_path / "again")
    path = workdir.write()
    write_report([path])
    for part in (path / "round_0" / "03_self_evaluate").glob("*"):
        part.unlink()
    files = write_report([path])
    assert not (files.folder / "scores_round_0.png").exists()


@pytest.mark.parametrize("call", [results_table, stage_times, status_table])
def test_folder_that_is_no_workdir_is_a_user_error(tmp_path, call):
    with pytest.raises(UserError, match="holds no workdir.json"):
        call(tmp_path)
    with pytest.raises(UserError, match="holds no workdir.json"):
        write_report([tmp_path / "missing"])
    with pytest.raises(UserError, match="no workdir was given"):
        write_report([])


def test_damaged_part_names_its_line(tmp_path):
    workdir = Workdir(tmp_path / "damaged")
    path = workdir.write(STAGES[:2])
    part = path / "round_0" / "01_preprocess" / "part-00000-of-00002.jsonl"
    part.write_text(part.read_text() + '{"id": 1}\n')
    with pytest.raises(UserError, match="part-00000-of-00002.jsonl line 5"):
        write_report([path])


def test_scores_that_are_not_numbers_are_counted_and_do_not_break_the_page(tmp_path):
    workdir = Workdir(tmp_path / "broken")
    workdir.scores[0] = dataclasses.replace(workdir.scores[0], yes_probability=float("nan"))
    text = write_report([workdir.write(STAGES[:4])]).html.read_text()
    assert "Scores that are not numbers and left out: 1." in text
    assert json.loads(Reader(text).scripts[0])[0]["candidates"][0]["score"] is None


def test_report_leaves_the_run_as_it_was(tmp_path):
    path = Workdir(tmp_path / "same").write()
    before = [(p, p.stat().st_mtime_ns) for p in sorted(path.rglob("*")) if p.is_file()]
    write_report([path])
    assert before == [(p, p.stat().st_mtime_ns) for p, _ in before]
