"""The dashboard's definition: every key that it plots is one that training logs."""

import re

import pytest

from fastcap.tools import dashboard
from tests.wandb_file import read_runs


@pytest.fixture(scope="module")
def definition():
    return dashboard.definition(dashboard.build_workspace(entity="somebody", project="fastcap"))


def _panels(definition):
    return [
        panel for section in definition["spec"]["section"]["panelBankConfig"]["sections"] for panel in section["panels"]
    ]


def _strings(node):
    """Every text in a panel's configuration that may name a metric."""
    if isinstance(node, dict):
        return [s for key, value in node.items() if "itle" not in key for s in _strings(value)]
    if isinstance(node, list):
        return [s for value in node for s in _strings(value)]
    return [node] if isinstance(node, str) else []


def test_every_plotted_key_is_logged(definition, multirun):
    logged = read_runs(multirun[0][0])[0].keys
    named = {text for panel in _panels(definition) for text in _strings(panel["config"]) if "/" in text}
    patterns = {text for text in named if "\\" in text}
    assert len(named) > 12 and len(patterns) == 1
    keys = {text.removeprefix("summary:") for text in named - patterns}
    keys = {re.sub(r"\.(max|min|mean|last)$", "", key) for key in keys}
    assert not keys - logged
    assert all(any(re.fullmatch(pattern, key) for key in logged) for pattern in patterns)
    axes = {panel["config"]["xAxis"] for panel in _panels(definition) if panel["viewType"] == "Run History Line Plot"}
    assert axes <= logged
    assert definition["spec"]["section"]["settings"]["shouldAutoGeneratePanels"], "W&B adds the other scalars"


def test_without_an_account_one_line_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dashboard, "has_account", lambda: False)
    with pytest.raises(SystemExit) as stop:
        dashboard.main([])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "wandb login" in error and "--print" in error


def test_with_an_account_it_is_saved_and_its_address_printed(monkeypatch, capsys):
    from wandb_workspaces.workspaces import Workspace

    saved = []
    monkeypatch.setattr(dashboard, "has_account", lambda: True)
    monkeypatch.setattr(dashboard, "default_entity", lambda: "somebody")
    monkeypatch.setattr(Workspace, "save", lambda self: saved.append(self))
    monkeypatch.setattr(Workspace, "url", "https://wandb.ai/somebody/mine?nw=1")
    dashboard.main(["--project", "mine"])
    assert capsys.readouterr().out.split() == ["Dashboard", "https://wandb.ai/somebody/mine?nw=1"]
    assert (saved[0].entity, saved[0].project) == ("somebody", "mine")
