"""Shared fixtures: one torch thread for every test; and the budget of properties and fuzz tests."""

from __future__ import annotations

import pytest
import torch

from tests.budget import set_budget


def pytest_addoption(parser):
    parser.addoption(
        "--budget",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="properties and fuzz tests try so many times their cases, other ones each time (make fuzz)",
    )


def pytest_configure(config):
    set_budget(config.getoption("--budget"))


@pytest.fixture(autouse=True)
def one_thread():
    """Tests share the machine; and sums of few numbers are no faster on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
