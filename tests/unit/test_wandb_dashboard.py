"""The dashboard's script: its JSON without an account, and what it says without library or account."""

from __future__ import annotations

import itertools
import json
import socket
import sys

import pytest
import wandb_dashboard as dashboard

from gfn_runner.loggers.wandb_run import STEP


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture
def printed(monkeypatch, capsys) -> dict:
    pytest.importorskip("wandb_workspaces")

    def refuse(*arguments, **named):
        raise AssertionError("a server was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert dashboard.main(["--json", "--entity", "me", "--project", "p", "--name", "n"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_json_has_every_panel_in_workspace_and_report(printed):
    assert printed["workspace"]["entity"] == "me" and printed["workspace"]["project"] == "p"
    sections = printed["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections] == [s.name for s in dashboard.SECTIONS]
    grids = [b for b in printed["report"]["spec"]["blocks"] if b["type"] == "panel-grid"]
    in_report = [g["metadata"]["panelBankSectionConfig"]["panels"] for g in grids]
    assert [len(s["panels"]) for s in sections] == [len(s.panels) for s in dashboard.SECTIONS]
    assert list(map(len, in_report)) == [len(s.panels) for s in dashboard.SECTIONS]
    for drawn in ([s["panels"] for s in sections], in_report):
        for panel, made in zip(dashboard.panels(), itertools.chain(*drawn), strict=True):
            text = json.dumps(made)
            for name in () if panel.pattern else panel.metrics:
                assert f'"{name}"' in text, name
            if panel.pattern:
                assert made["config"]["metricRegex"] == panel.pattern
                assert made["config"]["useMetricRegex"] is True
            if panel.on_pages:
                assert made["config"]["xAxis"] == STEP
                assert made["config"].get("yLogScale", False) is panel.log


def test_without_the_library_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert dashboard.main(["--json"]) == 2
    assert "pip install 'gfn-runner[dashboards]'" in capsys.readouterr().err


def test_without_an_account_it_says_so(capsys):
    pytest.importorskip("wandb_workspaces")
    assert dashboard.main(["--entity", "me"]) == 1
    said = capsys.readouterr().err
    assert "API key" in said and "--json" in said and "Traceback" not in said
