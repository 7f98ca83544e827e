"""Fixtures of several files."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """The working directory; figures are closed afterwards."""
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")
