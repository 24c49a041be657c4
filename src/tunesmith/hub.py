"""The Hugging Face Hub, or the cache of it where it cannot be reached."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit


@contextmanager
def offline_if_unreachable() -> Iterator[None]:
    """Where the Hub's name does not resolve, read the cache at once instead of after half a minute of retries."""
    from huggingface_hub import constants

    held: list[Any] = [m for m in (constants, getattr(sys.modules.get("datasets"), "config", None)) if m is not None]
    before = [m.HF_HUB_OFFLINE for m in held]
    for m in held if not reachable() else ():
        m.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for m, value in zip(held, before, strict=True):
            m.HF_HUB_OFFLINE = value


@cache
def reachable() -> bool:
    """A proxy resolves names itself, so behind one this cannot be known and is taken to be so."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False
