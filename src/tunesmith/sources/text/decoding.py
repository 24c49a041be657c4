"""Bytes to text: unpacks gzip within a bound, names archives and encodings, never guesses an encoding in silence."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from tunesmith.errors import Refusal
from tunesmith.sources.text.records import Document, quoted

MAX_UNPACKED = 2 << 30
_BLOCK = 1 << 20
_BINARY = {
    b"PK\x03\x04": "a zip archive or an Excel file",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF",
    b"\xd0\xcf\x11\xe0": "an old Office file",
    b"SQLite format 3": "an SQLite database",
}
_SAMPLE = 200_000
_FREQUENT = frozenset(
    "的一是不了人我在有他这這个個们們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于於着著下自之年过過发發后後作里裡用道行所"
    "然家种種事成方多经經么麼去法学學如都同现現当當没沒动動面起看定天分还還进進好小部其些主样樣理心她本前开開但因只从從想实實，。！？、："
)


def load(file: Path, shown: str, key: str) -> bytes:
    """The bytes of a file, unpacked if it is gzip. Refuses an unreadable, damaged or too large one."""
    try:
        if not file.is_file():
            raise Refusal(f"{quoted(shown)} is neither a file nor a folder", where=key, fix="give the path of a file")
        with file.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        return _unpack(file, shown) if packed else file.read_bytes()
    except OSError as fault:
        raise Refusal(f"cannot be read: {fault.strerror or fault}", where=shown, fix="check the path and its permissions") from fault


def _unpack(file: Path, shown: str) -> bytes:
    blocks, size = [], 0
    try:
        with gzip.open(file) as stream:
            while block := stream.read(_BLOCK):
                blocks.append(block)
                size += len(block)
                if size > MAX_UNPACKED:
                    raise Refusal(f"unpacks to more than {MAX_UNPACKED:,} bytes", where=shown, fix="unpack it yourself and split it")
    except (EOFError, zlib.error, gzip.BadGzipFile) as fault:
        raise Refusal(f"is damaged gzip: {fault}", where=shown, fix="copy or download the file again") from fault
    return b"".join(blocks)


def decode(data: bytes, shown: str, suffix: str, key: str, encoding: str | None) -> Document:
    """The text of a file. Without `encoding` it must be UTF-8; the refusal names the encoding that it looks like."""
    for magic, name in _BINARY.items():
        if data.startswith(magic):
            raise Refusal(f"is {name}, not text", where=shown, fix="unpack or export it to CSV, JSON lines or Parquet first")
    text = (_with(encoding, data, shown, key) if encoding else _utf8(data, shown, key)).removeprefix("\ufeff")
    if "\n" not in text and "\r" in text:  # line ends of the first Macintoshes
        text = text.replace("\r", "\n")
    document = Document(shown, text, suffix, key)
    if (spot := text.find("\0")) >= 0:
        raise document.refuse(
            spot,
            "a NUL character",
            why="text files hold none: the file is damaged, binary, or in another encoding",
            fix="delete the character",
        )
    if not text.strip():
        raise Refusal("0 rows: the file is empty", where=shown, fix="write rows into it, or name another file")
    return document


def _utf8(data: bytes, shown: str, key: str) -> str:
    if wide := _utf16(data):
        raise Refusal(f"the text is not UTF-8 but looks like {wide}", where=f"{shown}:1:1", fix=_offer(wide, key))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        start = fault.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        raise _wrong(data, start, *_guess(data), shown, key) from None


def _with(encoding: str, data: bytes, shown: str, key: str) -> str:
    plain = encoding.strip().lower().replace("_", "-")
    try:
        return data.decode("utf-8-sig" if plain in ("utf-8", "utf8") else encoding.strip())
    except UnicodeDecodeError as fault:
        what = f"byte 0x{data[fault.start]:02X} (byte {fault.start:,} of the file) is not {encoding}"
        raise Refusal(what, where=_place(data, fault.start, shown), fix=_offer(_guess(data)[1], key)) from None
    except (LookupError, ValueError):
        names = "utf-8, utf-16, gb18030, big5, shift_jis, latin-1, cp1252"
        raise Refusal(f"no encoding is named {quoted(encoding)}", where=f"{key.split('.')[0]}.encoding", fix=f"one of {names}") from None


def _utf16(data: bytes) -> str:
    """UTF-16 by its mark, or by the zero byte that every second byte of mostly Latin text is."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    head = data[:2000]
    if len(head) < 4 or head.count(0) * 3 < len(head):
        return ""
    return "utf-16-le" if head[1::2].count(0) > head[0::2].count(0) else "utf-16-be"


def _guess(data: bytes) -> tuple[str, str]:
    """(why, encoding) for bytes that are not UTF-8; the encoding is "" where none is worth offering."""
    head = data[: data.rfind(b"\n", 0, _SAMPLE) + 1] or data[:_SAMPLE]
    foreign = [c for c in head.decode("utf-8", "replace") if c > "\x7f"]
    if foreign.count("\ufffd") < 0.5 * len(foreign) or not foreign:
        return "the rest is valid UTF-8, so these bytes are damaged or two encodings are mixed", ""
    name = max(("gb18030", "big5"), key=lambda name: _chinese(head, name))
    if _chinese(head, name) > 0.1:
        return f"the text looks like Chinese in {name}", name
    if sum(byte > 127 for byte in head) < 0.3 * len(head):
        return "the text looks like latin-1", "latin-1"
    return "the encoding is not one that is recognised", ""


def _chinese(head: bytes, name: str) -> float:
    """The share of very frequent Chinese characters in what is not ASCII, were it in this encoding; about 0.3 in real text."""
    foreign = [c for c in head.decode(name, "replace") if c > "\x7f"]
    return sum(c in _FREQUENT for c in foreign) / max(len(foreign), 1)


def _place(data: bytes, start: int, shown: str) -> str:
    line_start = data.rfind(b"\n", 0, start) + 1
    column = len(data[line_start:start].decode("utf-8", "replace").removeprefix("\ufeff")) + 1
    return f"{shown}:{data.count(10, 0, start) + 1}:{column}"


def _offer(encoding: str, key: str) -> str:
    named = f"`encoding: {encoding}`" if encoding else "`encoding:` (gb18030, big5, shift_jis, cp1251, latin-1, ...)"
    return f"set {named} under `{key.split('.')[0]}:` in the recipe, or save the file as UTF-8"


def _wrong(data: bytes, start: int, why: str, encoding: str, shown: str, key: str) -> Refusal:
    what = f"byte 0x{data[start]:02X} (byte {start:,} of the file) is not UTF-8"
    return Refusal(what, where=_place(data, start, shown), why=why, fix=_offer(encoding, key))
