"""The ledger of runs: a row each, once; and the tables that are made of it."""

import csv
import json
from pathlib import Path

import pytest

from fastcap.reporting import find_runs, results
from fastcap.reporting.ledger import COLUMNS, LedgerError, add_runs, read_ledger
from fastcap.reporting.quality import rebuild

NOTHING = ["logger=csv", "~callbacks.x", "recipe=none", "resume=last"]  # that changes a number
FAULTS = {"val/distinct": 77.0, "val/repetitions": 0}
ROOT = Path(__file__).parents[2]


def _run(folder, **changes):
    folder.mkdir(parents=True)
    content = {
        "date": "2026-01-02T03:04:05",
        "commit": "0123456789",
        "dirty": True,
        "seed": 3,
        "given": [
            f"ckpt={folder.parent}/a/best.ckpt",
            "data.source.root=/home/me/sets/coco",
            "logger=csv",
            "~callbacks.x",
        ],
        "decoder": "fastcap.decoder.moe_decoder.MoEDecoder",
        "data": "coco",
        "split": "val",
        "images": 1000,
        "refinement": {"num_steps": 2, "num_lengths": 3},
        "metrics": {
            "val/cider": 47.5123,
            "val/bleu4": 19.84,
            "val/loss": 3.25,
            "val/distinct": 77.0,
            "val/repetitions": 0,
        },
        "parameters": 8711822,
        "minutes": 1.25,
        **changes,
    }
    (folder / "results.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _run(tmp_path / "runs/two")
    _run(tmp_path / "runs/word", refinement={"num_beams": 1}, dirty=None, commit=None)
    (tmp_path / "runs/started").mkdir()
    (tmp_path / "runs/started/metrics.csv").write_text("step,epoch,val/cider\n1,0,3\n")
    return tmp_path


def test_a_ledger_from_before_a_column_gets_it(runs):
    results.main(["runs"])
    path = runs / "experiments/results.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    at = lines[0].index("strange")
    path.write_text("\n".join(",".join(cells[:at] + cells[at + 1 :]) for cells in lines) + "\n")
    assert [row["strange"] for row in read_ledger(path)] == ["", ""]
    _run(runs / "runs/third", metrics={"val/cider": 1.0, "val/strange": 2.5})
    results.main(["runs"])
    assert sorted(row["strange"] for row in read_ledger(path)) == ["", "", "2.5"]


def test_a_run_is_one_row_however_often_it_is_added(runs, capsys):
    for expected in ("2 new, 0 changed", "0 new, 0 changed"):
        results.main(["runs"])
        assert expected in capsys.readouterr().out
    rows = read_ledger(runs / "experiments/results.csv")
    assert [row["run"] for row in rows] == ["runs/two", "runs/word"]
    told = "ckpt=runs/a/best.ckpt data.source.root=sets/coco"
    expected = ["2026-01-02T03:04:05", "0123456789", "True", "3", told, "MoEDecoder", "coco", "val", "1000", "2"]
    assert [rows[0][name] for name in COLUMNS[:10]] == expected
    assert [rows[0][name] for name in ("cider", "bleu4", "val_loss", "decode_ms", "params", "minutes", "lengths")] == (
        ["47.5123", "19.84", "3.25", "", "8711822", "1.25", "3"]
    )
    assert (rows[1]["commit"], rows[1]["dirty"], rows[1]["steps"], rows[1]["beams"]) == ("", "", "", "1")


def test_a_run_that_was_timed_since_keeps_its_place_and_another_date_is_another_run(runs):
    ledger = runs / "ledger.csv"
    assert add_runs(ledger, find_runs([runs / "runs"]), runs) == (2, 0)
    path = runs / "runs/two/results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decode_ms": 6.777}))
    assert add_runs(ledger, find_runs([runs / "runs"]), runs) == (0, 1)
    assert [row["decode_ms"] for row in read_ledger(ledger)] == ["6.777", ""]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"date": "2026-02-02T00:00:00"}))
    assert add_runs(ledger, find_runs([runs / "runs"]), runs) == (1, 0)


def test_a_recipes_own_folder_is_no_row_but_its_stages_are(runs):
    _run(runs / "runs/recipe", stages=["01_teacher"])
    (runs / "runs/recipe/recipe.json").write_text("{}")
    _run(runs / "runs/recipe/01_teacher")
    add_runs(runs / "ledger.csv", find_runs([runs / "runs/recipe"]), runs)
    assert [row["run"] for row in read_ledger(runs / "ledger.csv")] == ["runs/recipe/01_teacher"]


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
    assert row == ["runs/two", "2 steps, 3 lengths", "coco val, 1000 images", *scores]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("results.csv size=3", r"'size' is no column of results\.csv"),
        ("results.csv run=nobody", "no row of results.csv is like that"),
        ("nothing.csv", "no row of nothing.csv is like that"),
        ("other.csv", r"other\.csv: no ledger of runs \(no column 'date'\)"),
        ("half.csv", r"half\.csv: line 2: not 22 cells"),
    ],
)
def test_what_makes_no_table_is_named(runs, what, message):
    add_runs(runs / "results.csv", find_runs([runs / "runs"]), runs)
    (runs / "other.csv").write_text("a,b\n1,2\n")
    (runs / "half.csv").write_text(",".join(COLUMNS) + "\n1,2\n")
    (runs / "page.md").write_text(f"<!-- quality: {what} -->\n<!-- /quality -->\n")
    with pytest.raises(LedgerError, match=message):
        rebuild(runs / "page.md")
    (runs / "page.md").write_text("<!-- quality: results.csv -->\n")
    with pytest.raises(LedgerError, match=r"page\.md: a marker .* without"):
        rebuild(runs / "page.md")


def test_a_wrong_ledger_is_one_line(runs, capsys):
    (runs / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as stop:
        results.main(["runs", "--csv", "other.csv"])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("fastcap: error: other.csv: no ledger")


def test_this_repositorys_tables_agree_with_its_ledger(tmp_path):
    pages = {page: page.read_text() for page in (ROOT / "README.md", *(ROOT / "experiments").rglob("*.md"))}
    copies = tmp_path / "copy"
    for page, text in pages.items():
        copy = copies / page.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    (copies / "experiments/results.csv").write_text((ROOT / "experiments/results.csv").read_text())
    counts = {page: rebuild(copies / page.relative_to(ROOT)) for page in pages}
    assert counts[ROOT / "README.md"] >= 1
    assert all((copies / page.relative_to(ROOT)).read_text() == text for page, text in pages.items())
    with open(ROOT / "experiments/results.csv", newline="") as file:
        text = file.read()
        file.seek(0)
        assert len(list(csv.DictReader(file))) >= 10
    assert not any(word in text for word in ("/home/", "/work/", "/root/", "/tmp/"))
