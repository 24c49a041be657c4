"""What is asked of the machine: how a process is started."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tunesmith import machine

TELLS = "import os, sys\nfrom tunesmith import machine\nmachine.start_without_caches()\nprint(sys.argv[1:], os.environ.get('GLIBC_TUNABLES'))"


@pytest.fixture
def started(monkeypatch):
    """What the process was replaced by, if it was."""
    found: list[tuple] = []
    monkeypatch.setattr(os, "execve", lambda *given: found.append(given))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return found


def libc(version: str) -> SimpleNamespace:
    return SimpleNamespace(gnu_get_libc_version=type("Version", (), {"__call__": lambda self: version.encode()})())


@pytest.mark.parametrize(("version", "again"), [("2.36", True), ("2.38", True), ("2.39", False), ("2.41", False), ("3.0", False)])
def test_an_old_glibc_is_started_again_and_a_mended_one_is_not(monkeypatch, started, version, again):
    monkeypatch.setattr(machine, "glibc", lambda: libc(version))
    machine.start_without_caches()
    assert len(started) == again
    if again:
        program, words, environment = started[0]
        assert [program, *words] == [sys.executable, sys.executable, *sys.orig_argv[1:]]
        assert environment["GLIBC_TUNABLES"] == "glibc.malloc.tcache_count=0"


def test_what_the_user_has_set_is_kept_and_other_systems_are_left_alone(monkeypatch, started):
    monkeypatch.setattr(machine, "glibc", lambda: None)
    machine.start_without_caches()
    monkeypatch.setattr(machine, "glibc", lambda: libc("2.36"))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    machine.start_without_caches()
    assert not started


def test_a_process_that_starts_again_is_the_same_with_its_words():
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", TELLS, "one", "two words"], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("['one', 'two words']")
    assert done.stdout.count("\n") == 1
    words = [sys.executable, "-m", "tunesmith", "list", "nonsense"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "there are no nonsense" in done.stderr
