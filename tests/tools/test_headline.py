"""The README's table is what the benchmark's CSV file says."""

import csv
import re
from pathlib import Path

import pytest

from fastcap.tools import bench
from fastcap.tools.headline import COLUMNS, MORE_COLUMNS, TableError, markdown, read_table, readme_table

ROOT = Path(__file__).parents[2]
ROWS = [
    ["fastcap", "onnx", "int8", 7_000_000, 9.5, 10.0, 12.0, 300, 224, 2, "", 4, "trained", 200],
    ["fastcap-autoregressive", "eager", "fp32", 8_000_000, 32.0, 40.0, 55.5, 600, 224, 2, 1, "", "random", 200],
    ["git-base", "eager", "fp32", 176_619_066, 706.5, 600.0, 700.0, "nan", 224, 2, 1, 12, "random", 20],
    ["git-base", "eager", "fp32", 176_619_066, 706.5, 1500.0, 1700.0, 1500.5, 224, 2, 4, 12, "random", 10],
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "study" / "bench.csv"
    path.parent.mkdir()
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([[*COLUMNS, *MORE_COLUMNS], *ROWS])
    facts = '{"processor": "Some CPU", "matmul_gflop_per_s": 161.0}'
    path.with_suffix(".json").write_text(facts)
    return path


def test_markdown_says_what_the_file_says(table, capsys):
    bench.main(["table", str(table)])
    printed = capsys.readouterr().out
    assert printed == markdown(table)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    assert lines[0][-1] == "× git-base 224" and len({len(line) for line in lines[:6]}) == 1
    assert lines[2] == ["fastcap, 4 steps", "onnx", "int8", "trained", "7.0", "9.5", "10.0", "12.0", "300", "60.0"]
    assert lines[3][0] == "fastcap-autoregressive, greedy" and lines[3][-1] == "15.0"
    assert lines[4][0] == "git-base, 224 px, greedy" and lines[4][-2:] == ["–", "1.0"]
    assert lines[5][0] == "git-base, 224 px, beam 4" and lines[5][-1] == "0.4"
    assert "Some CPU, 2 threads, 161.0 GFLOP/s" in printed


def test_readme_is_filled_between_its_markers_again_and_again(table, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- headline: -->\n<!-- /headline -->\nafter\n")
    for _ in range(2):
        bench.main(["table", str(table), "--readme", str(readme)])
    text = readme.read_text()
    assert readme_table(text) == ("study/bench.csv", markdown(table))
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and text.count("headline") == 2


def test_this_repositorys_readme_agrees_with_its_file():
    path, body = readme_table((ROOT / "README.md").read_text(encoding="utf-8"))
    if not path:
        assert not body
        pytest.skip("the README has no headline table yet")
    assert body == markdown(ROOT / path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("p95_ms", "p99_ms"), "no column 'p95_ms'"),
        (lambda text: text.replace("600.0,700.0", "fast,700.0"), r"line 4: p50_ms = 'fast' is no number"),
        (lambda text: "", "not a table of captioners"),
    ],
)
def test_a_table_that_is_none_is_named(table, change, message):
    table.write_text(change(table.read_text()))
    with pytest.raises(TableError, match=rf"{re.escape(str(table))}: .*{message}"):
        read_table(table)


def test_missing_files_and_markers_are_named(table, tmp_path, capsys):
    (tmp_path / "README.md").write_text("nothing here")
    for arguments, message in (
        ([str(tmp_path / "none.csv")], "none.csv: cannot be read"),
        ([str(table), "--readme", str(tmp_path / "README.md")], "README.md: no markers"),
    ):
        with pytest.raises(SystemExit):
            bench.main(["table", *arguments])
        assert message in capsys.readouterr().err
