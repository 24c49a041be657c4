"""The executable guide: every row has its page in both languages, with recipes and proofs that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tunesmith.guide import GUIDE

DOCS = Path(__file__).resolve().parent.parent / "docs"
SCREEN = 30  # lines of a page


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", ["guide.md", "guide.zh-CN.md"])
def test_every_row_has_a_page_that_leads_somewhere(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    pages = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert list(pages) == list(GUIDE)
    for row, page in pages.items():
        assert f"(#{row})" in text, f"{row} is in no table"
        assert page.count("\n") < SCREEN and re.search(r"\d\.\d", page), f"{row} has no figure"
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        assert not path or (DOCS / path).exists(), link
        assert not anchor or anchor in anchors(DOCS / (path or name)), link


def test_both_languages_have_the_same_figures():
    english, chinese = (re.findall(r"\d+\.\d\d+", (DOCS / name).read_text(encoding="utf-8")) for name in ("guide.md", "guide.zh-CN.md"))
    assert sorted(english) == sorted(chinese)
