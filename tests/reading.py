"""What the tests of reading share: a folder of their own, a file written, a refusal with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tunesmith.errors import Refusal
from tunesmith.sources.text.read import read

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return name


def refused(name: str, **options) -> str:
    with pytest.raises(Refusal) as caught:
        read(name, **options)
    assert caught.value.fix, f"no remedy in: {caught.value}"
    assert "Traceback" not in str(caught.value)
    return str(caught.value)
