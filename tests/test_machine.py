"""What is asked of the machine: how a process is started, and what it need not hold."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import shop
from tunesmith import machine
from tunesmith.methods import BitFit, Layers
from tunesmith.networks.load import Origin, load_network

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


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux says what is mapped")
@pytest.mark.parametrize("method", [BitFit(), Layers(last=1)], ids=["bitfit", "layers"])
@pytest.mark.parametrize("keep", [False, True])
def test_no_file_stays_mapped_for_the_few_tensors_that_move(method, keep, tmp_path):
    """What rests is held in bf16. With its base kept, for another arm or a reference, a network goes on to hold the file."""
    folder = str(shop.encoder(tmp_path / f"{type(method).__name__}-{keep}"))
    mapped = lambda: folder in Path("/proc/self/maps").read_text()
    net = load_network(Origin(folder, folder), generates=False)
    assert mapped()
    delta = method.attach(net, keep=keep)
    before = {name: net.get_parameter(name).detach().clone() for name in delta.trains}
    delta.cast(torch.bfloat16, keep=keep)
    gc.collect()
    assert mapped() is keep
    assert all(torch.equal(net.get_parameter(name), value) for name, value in before.items())
