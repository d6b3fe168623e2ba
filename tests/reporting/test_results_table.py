"""The table of runs: a row each, once; and the Markdown tables that are made of it and of benchmarks."""

import json
from pathlib import Path

import pytest

from fastcap.reporting import results
from fastcap.reporting.runs import differing, find_runs
from fastcap.reporting.tables import COLUMNS, SPEED_COLUMNS, add_runs, read_table, rebuild
from fastcap.utils.errors import UserError

ROOT = Path(__file__).parents[2]
RESULTS = {
    "date": "2026-01-02T03:04:05",
    "commit": "0123456789",
    "dirty": True,
    "seed": 3,
    "given": ["data.source.root=/home/me/sets/coco", "logger=csv", "~callbacks.x", "resume=last"],
    "decoder": "fastcap.decoder.moe_decoder.MoEDecoder",
    "data": "coco",
    "split": "val",
    "images": 1000,
    "refinement": {"num_steps": 2, "length_beam": 3},
    "metrics": {"val/cider": 47.5123, "val/bleu4": 19.84, "val/loss": 3.25, "val/distinct": 77.0, "val/repetitions": 0},
    "parameters": 8711822,
    "minutes": 1.25,
}


def _run(folder, overrides=(), **changes):
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/overrides.yaml").write_text("\n".join(f"- {o}" for o in overrides) or "[]")
    (folder / "results.json").write_text(json.dumps(RESULTS | changes))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _run(tmp_path / "runs/two")
    _run(tmp_path / "runs/word", refinement={"num_beams": 1}, dirty=None, commit=None)
    (tmp_path / "runs/started").mkdir()
    (tmp_path / "runs/started/metrics.csv").write_text("step,epoch,val/cider\n1,0,3\n")
    return tmp_path


def test_runs_are_found_once_in_order_through_links_and_by_what_differs(runs):
    for job in ("2", "10"):
        _run(runs / "runs/sweep" / job, ["seed=1", f"optim.optimizer.lr={job}", "logger=csv"])
    (runs / "runs/sweep/9").mkdir()
    (runs / "runs/sweep/9/failed.json").write_text('{"error": "no such file"}')
    (runs / "linked").symlink_to(runs / "runs/sweep")
    (runs / "runs/circle").symlink_to(runs)
    found = find_runs([runs / "linked", runs])
    assert [run.path.name for run in found if run.path.parent.name == "linked"] == ["2", "9", "10"]
    assert len(found) == 6
    sweep = [run for run in found if run.path.parent.name == "linked"]
    assert [run.status for run in sweep] == ["finished", "failed", "finished"] and sweep[1].error == "no such file"
    assert differing(sweep[::2]) == ["optim.optimizer.lr"]
    (runs / "empty").mkdir()
    for wrong, message in ((runs / "empty", "no run in this folder"), (runs / "none", "no such folder")):
        with pytest.raises(UserError, match=message):
            find_runs([wrong])


def test_a_run_is_one_row_however_often_it_is_added(runs, capsys):
    for expected in ("2 new, 0 changed", "0 new, 0 changed"):
        results.main(["runs"])
        assert expected in capsys.readouterr().out
    rows = read_table(runs / "experiments/results.csv")
    assert [row["run"] for row in rows] == ["runs/two", "runs/word"]
    told = "data.source.root=sets/coco"
    expected = ["2026-01-02T03:04:05", "0123456789", "True", "3", told, "MoEDecoder", "coco", "val", "1000", "2"]
    assert [rows[0][name] for name in COLUMNS[:10]] == expected
    scores = ("cider", "bleu4", "val_loss", "decode_ms", "params", "minutes", "length_beam")
    assert [rows[0][name] for name in scores] == ["47.5123", "19.84", "3.25", "", "8711822", "1.25", "3"]
    assert (rows[1]["commit"], rows[1]["dirty"], rows[1]["steps"], rows[1]["beams"]) == ("", "", "", "1")


def test_tables_are_made_between_markers_again_and_again(runs, capsys):
    page = runs / "README.md"
    before = "before `<!-- quality: no marker -->`\n<!-- quality: experiments/results.csv run=runs/* steps=2 -->\n"
    page.write_text(before + "old\n<!-- /quality -->\nafter\n")
    results.main(["runs"])
    once = page.read_text()
    results.main([])
    assert page.read_text() == once and "README.md (1)" in capsys.readouterr().out
    assert once.startswith(before + "| run | ") and once.endswith("|\n<!-- /quality -->\nafter\n") and "old" not in once
    row = [cell.strip() for cell in once.splitlines()[4].strip("|").split("|")]
    scores = ["47.5", "19.8", "77", "0.0", "8.7", "3", "0123456+"]
    assert row == ["runs/two", "2 steps, length beam 3", "coco val, 1000 images", *scores]


def test_speed_is_told_beside_the_baselines(tmp_path):
    rows = [
        ["fastcap", "onnx", "int8", 7_000_000, 9.5, 10.0, 12.0, 300, 224, 2, "", 4, "trained", 200],
        ["git-base", "eager", "fp32", 176_619_066, 706.5, 600.0, 700.0, "nan", 224, 2, 1, 12, "random", 20],
        ["git-base", "eager", "fp32", 176_619_066, 706.5, 1500.0, 1700.0, 1500.5, 224, 2, 4, 12, "random", 10],
    ]
    lines = [",".join(map(str, row)) for row in (SPEED_COLUMNS, *rows)]
    (tmp_path / "bench.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "page.md").write_text("<!-- speed: bench.csv -->\n<!-- /speed -->\n")
    assert rebuild(tmp_path / "page.md") == 1
    told = [[c.strip() for c in line.strip("|").split("|")] for line in (tmp_path / "page.md").read_text().splitlines()]
    assert told[1][-1] == "× git-base 224" and told[2][:4] == ["---"] * 4 and set(told[2][4:]) == {"--:"}
    assert told[3][0] == "fastcap, 224 px, 4 steps" and told[3][4:] == ["7.0", "9.5", "10.0", "12.0", "300", "60.0"]
    assert told[4][0] == "git-base, 224 px, greedy" and told[4][-2:] == ["–", "1.0"]
    assert told[5][0] == "git-base, 224 px, beam 4" and told[5][-1] == "0.4"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("results.csv size=3", r"'size' is no column of results\.csv"),
        ("results.csv run=nobody", "no row of results.csv is like that"),
        ("other.csv", r"other\.csv: no column 'date'"),
    ],
)
def test_what_makes_no_table_is_named(runs, what, message):
    add_runs(runs / "results.csv", find_runs([runs / "runs"]), runs)
    (runs / "other.csv").write_text("a,b\n1,2\n")
    (runs / "page.md").write_text(f"<!-- quality: {what} -->\n<!-- /quality -->\n")
    with pytest.raises(UserError, match=message):
        rebuild(runs / "page.md")
    (runs / "page.md").write_text("<!-- quality: results.csv -->\n")
    with pytest.raises(UserError, match=r"page\.md: a marker .* without"):
        rebuild(runs / "page.md")


def test_this_repositorys_tables_agree_with_their_files(monkeypatch):
    monkeypatch.chdir(ROOT)
    built = {}
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: built.setdefault(path, text))
    results.main([])
    assert built == {}, "run `fastcap results`"
    text = (ROOT / "experiments/results.csv").read_text()
    assert text.count("\n") >= 10 and not any(word in text for word in ("/home/", "/work/", "/root/", "/tmp/"))
