"""A sample of each size, shared by the tests."""

from __future__ import annotations

import pytest

from nextquill_core.synthetic import SampleSummary, write_sample


@pytest.fixture(scope="session", params=[20, 60, pytest.param(300, marks=pytest.mark.slow)])
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SampleSummary:
    return write_sample(tmp_path_factory.mktemp("sample"), users=request.param)
