"""Strict reading: what is well written comes back exactly. (tests/test_read_faults.py has what is not.)"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reading import QUICK, in_folder, refused, write  # noqa: F401  (in_folder is a fixture that every test here uses)
from tunesmith.sources.text import arrow
from tunesmith.sources.text.read import read

DATA = os.environ.get("TUNESMITH_DATA")


def of(columns: str, *rows: tuple) -> list[dict]:
    return [dict(zip(columns.split(), row)) for row in rows]


# file, content, kind, rows, lines
GOOD = [
    ("a.jsonl", '{"t":"a"}\n\n{"t":"\\u00e9 \\ud83d\\ude00 \\\\u0000"}\r\n', "jsonl", of("t", ("a",), ("é 😀 \\u0000",)), [1, 3]),
    ("a.jsonl", b'\xef\xbb\xbf{"t":"a"}', "jsonl", of("t", ("a",)), [1]),
    ("a.json", '{"t":"a"}\n{"t":"b"}\n', "jsonl", of("t", ("a",), ("b",)), [1, 2]),
    ("a.txt", '{"t":"a"}\n{"t":"b"}\n', "jsonl", of("t", ("a",), ("b",)), [1, 2]),
    ("a.json", '[{"t":"a"},\n{"t":1}]', "json", of("t", ("a",), (1,)), [1, 2]),
    ("a.json", '{"version":2,"data":[{"t":"a"}]}', "json", of("t", ("a",)), [1]),
    ("a.json", '{"dev":[{"t":"b"}],"train":[{"t":"a"}]}', "json", of("t", ("a",)), [1]),
    ("a.json", '{"t":["a","b"],"n":[1,2]}', "json", of("t n", ("a", 1), ("b", 2)), [1, 2]),
    ("a.csv", "text,n\nNA,None\nnull,007\n1e5,\n", "csv", of("text n", ("NA", "None"), ("null", "007"), ("1e5", "")), [2, 3, 4]),
    ("a.csv", b'\xef\xbb\xbftext,n\r\n"a\r\nb",1\r\n\r\nc,0\r\n', "csv", of("text n", ("a\r\nb", "1"), ("c", "0")), [2, 5]),
    ("a.csv", "text,label\ra,b\r", "csv", of("text label", ("a", "b")), [2]),
    ("a.csv", "text;label\na;b\n", "csv", of("text label", ("a", "b")), [2]),
    ("a.csv", ",text\n0,a\n", "csv", of("column1 text", ("0", "a")), [2]),
    ("a.csv", "good film,1\nbad film,0\n", "csv", of("column1 column2", ("good film", "1"), ("bad film", "0")), [1, 2]),
    ("a.tsv", 'a "hi"\t1\n"so\t0\n', "tsv", of("column1 column2", ('a "hi"', "1"), ('"so', "0")), [1, 2]),
    ("a.txt", "text;label\nx, y;b\nz;c\n", "csv", of("text label", ("x, y", "b"), ("z", "c")), [2, 3]),
    ("a.txt", "Hi.\t嗨。\nRun.\t跑。\n", "tsv", of("column1 column2", ("Hi.", "嗨。"), ("Run.", "跑。")), [1, 2]),
    ("a.txt", "One\nparagraph; here.\n\n \nTwo.\n", "text", of("text", ("One\nparagraph; here.",), ("Two.",)), [1, 5]),
    ("a.txt", "One line.\nTwo, lines.\n", "text", of("text", ("One line.",), ("Two, lines.",)), [1, 2]),
    ("a.txt", "A.\n\nB.\n<|endoftext|>\nC.\n<|endoftext|>\n", "text", of("text", ("A.\n\nB.",), ("C.",)), [1, 5]),
    ("a.txt", "a\tO\n\n-DOCSTART-\tO\n\nc\tB-X\n", "conll", of("tokens tags", (["a"], ["O"]), (["c"], ["B-X"])), [1, 5]),
    ("a.tsv", "token\tner\nEU NNP\tB-X\nx y\tO\n", "conll", of("tokens tags", (["EU NNP", "x y"], ["B-X", "O"])), [2]),
    ("a.conll", "EU NNP I-NP B-X\nsaid VBD I-VP O\n", "conll", of("tokens tags", (["EU", "said"], ["B-X", "O"])), [1]),
    ("a.train", "李0\tB-X\n开1\tI-X\n的0\tO\n", "conll", of("tokens tags", (["李", "开", "的"], ["B-X", "I-X", "O"])), [1]),
    (
        "a.test",
        "NUM:dist How?\nLOC:city Who?\n",
        "text",
        of("column1 column2 column3", ("NUM", "dist", "How?"), ("LOC", "city", "Who?")),
        [1, 2],
    ),
    ("a.csv.gz", gzip.compress(b"text,label\na,b\n"), "csv", of("text label", ("a", "b")), [2]),
]


@pytest.mark.parametrize("name, content, kind, rows, lines", GOOD, ids=[f"{i}-{case[0]}" for i, case in enumerate(GOOD)])
def test_what_is_well_written_comes_back(name, content, kind, rows, lines):
    records = read(write(name, content))
    assert (records.kind, records.rows, records.lines) == (kind, rows, lines)
    assert len(records) == len(rows)
    assert records.where(0) == (f"{name} record 1" if kind == "json" else f"{name}:{lines[0]}")


@pytest.mark.parametrize(
    "name, content, options, rows",
    [
        ("a.csv", "味道,1\n".encode("gb18030"), {"encoding": "gb18030"}, [{"column1": "味道", "column2": "1"}]),
        ("a.csv", "a,1\n".encode("utf-16"), {"encoding": "utf-16"}, [{"column1": "a", "column2": "1"}]),
        ("a.csv", "text,label\na,1\n", {"header": False}, [{"column1": "text", "column2": "label"}, {"column1": "a", "column2": "1"}]),
        ("a.csv", "1,2\n3,4\n", {"header": True}, [{"1": "3", "2": "4"}]),
        ("a.txt", "a~b\nc~d\n", {"delimiter": "~", "header": False}, [{"column1": "a", "column2": "b"}, {"column1": "c", "column2": "d"}]),
        ("a.txt", "text\tn\na\t1\n", {"delimiter": "tab"}, [{"text": "a", "n": "1"}]),
        ("a.json", '{"train":[["a","b"]],"test":[["c","d"]]}', {"header": False, "split": "test"}, [{"column1": "c", "column2": "d"}]),
    ],
)
def test_the_users_word_wins(name, content, options, rows):
    assert read(write(name, content), **options).rows == rows


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.csv", "text;label\na;b\n", ["semicolon"]),
        ("a.csv", "good one,1\n", ["no header", "column1, column2"]),
        ("a.tsv", '"a\t1\nb\t0\n', ["ordinary character"]),
        ("a.json", '{"data":[{"t":1}]}', ["`data`"]),
        ("a.txt", "a\n\nb\n", ["paragraph"]),
        ("a.csv", "text,label\na,b\n", []),
    ],
)
def test_a_guess_is_noted(name, content, words):
    notes = " ".join(read(write(name, content)).notes)
    assert all(word in notes for word in words) and bool(notes) == bool(words)


def test_parquet(monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"text": "007", "label": 1, "tags": ["a"]}, {"text": None, "label": 2, "tags": []}]
    pq.write_table(pa.Table.from_pylist(rows), "a.parquet")
    records = read("a.parquet")
    assert (records.rows, records.kind, records.where(1)) == (rows, "parquet", "a.parquet record 2")
    data = Path("a.parquet").read_bytes()
    assert "not a readable Parquet" in refused(write("cut.parquet", data[:-20]))
    pq.write_table(pa.Table.from_pylist([{"text": "x" * 1_100_000}]), "big.parquet")
    assert "big.parquet record 1: a row of over 1 MB" in refused("big.parquet")
    monkeypatch.setattr(arrow, "MAX_UNPACKED", 10)
    assert "unpacks to more" in refused("a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install "tunesmith[data]"' in refused("a.parquet")


class Feature:
    def __init__(self, names=None, feature=None):
        self.names, self.feature = names, feature


class Table(list):
    features = {"label": Feature(["neg", "pos"]), "tags": Feature(feature=Feature(["O", "B-X"])), "text": Feature()}  # noqa: RUF012


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets` that knows one data set."""

    def load_dataset(name, config, split):
        if name != "owner/set":
            raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nmore lines")
        return Table([{"text": f"{config} {split}", "label": 1, "tags": [0, 1]}, {"text": "b", "label": -1, "tags": []}])

    config, constants = types.SimpleNamespace(HF_HUB_OFFLINE=False), types.SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset, config=config))
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(constants=constants))
    monkeypatch.setattr("tunesmith.hub.reachable", lambda: False)
    return config


def test_a_name_that_is_no_file_is_read_from_the_hub(hub):
    records = read("owner/set:plain", split="test")
    assert records.rows == [{"text": "plain test", "label": "pos", "tags": ["O", "B-X"]}, {"text": "b", "label": None, "tags": []}]
    assert (records.kind, records.where(1), hub.HF_HUB_OFFLINE) == ("hub", "owner/set:plain record 2", False)


def test_an_unreachable_hub_is_one_refusal(hub):
    message = refused("owner/other")
    assert "Couldn't reach 'owner/other'" in message and "more lines" not in message
    write("other.json", "{}")
    assert "did you mean other.json?" in refused("other.jso")


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
CELLS = st.one_of(WORDS, st.sampled_from(["NA", "null", "007", "1e5", '"', '""', "a\nb", "a\r\nb", ",", ";", "\t", "好", "'", " x "]))
VALUES = st.recursive(
    st.one_of(WORDS, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda v: st.lists(v, max_size=3),
    max_leaves=6,
)


@QUICK
@given(st.lists(st.dictionaries(WORDS, VALUES, max_size=4), min_size=1, max_size=5), st.booleans())
def test_json_lines_round_trip(rows, escaped):
    write("a.jsonl", "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows))
    assert read("a.jsonl").rows == rows


@QUICK
@given(st.lists(st.dictionaries(WORDS, VALUES, max_size=4), min_size=1, max_size=5), st.sampled_from([None, 0, 2]))
def test_json_round_trip(rows, indent):
    assert read(write("a.json", json.dumps(rows, indent=indent))).rows == rows


@QUICK
@given(
    st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from([(",", "a.csv"), ("\t", "a.tsv"), (";", "a.csv")]),
)
def test_table_round_trip(rows, form):
    delimiter, name = form
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([["text", "label", "more"], *rows])
    assert [list(row.values()) for row in read(write(name, text.getvalue()), delimiter=delimiter).rows] == rows


# The package around this one may import what it likes: a stand-in for it shows what these modules import themselves.
IMPORTS = f"""
import sys, types
around = sys.modules["tunesmith.sources"] = types.ModuleType("tunesmith.sources")
around.__path__ = [{str(Path(arrow.__file__).parents[1])!r}]
import tunesmith.sources.text.formats, tunesmith.sources.text.read
print([name for name in ("torch", "transformers", "datasets", "pyarrow", "pandas", "numpy") if name in sys.modules])
"""


def test_reading_imports_nothing_heavy():
    ran = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.stdout.strip() == "[]"


# file, kind, rows
REAL = [
    ("sst2/train.tsv", "tsv", 6920),
    ("trec/TREC.test", "text", 500),
    ("emotion/train.txt", "csv", 16000),
    ("banking77/train.csv", "csv", 10003),
    ("chn_waimai/waimai_10k/waimai_10k.csv", "csv", 11987),
    ("fewclue_tnews/tnews/train_0.json", "jsonl", 240),
    ("wnut17/wnut17train.conll", "conll", 3394),
    ("wnut17/emerging.test.annotated", "conll", 1287),
    ("cluener/train.txt", "jsonl", 10748),
    ("weibo_ner/weiboNER_2nd_conll.train", "conll", 1350),
    ("gsm8k/train.jsonl", "jsonl", 7473),
    ("svamp/SVAMP.json", "json", 1000),
    ("e2e_nlg/devset.csv", "csv", 4672),
    ("llamafactory_demo/alpaca_zh_demo.json", "json", 1000),
    ("tatoeba_en_zh/cmn.txt", "tsv", 20403),
    ("stsb/stsb-en-train.csv", "csv", 5749),
    ("tinyshakespeare/input.txt", "text", 7222),
    ("chinese_poetry/诗经/shijing.json", "json", 305),
]


@pytest.mark.skipif(not DATA, reason="TUNESMITH_DATA names no folder of real data")
@pytest.mark.parametrize("name, kind, rows", REAL, ids=[case[0] for case in REAL])
def test_real_files(name, kind, rows):
    records = read(Path(DATA or "", name))
    assert (records.kind, len(records)) == (kind, rows)


@pytest.mark.skipif(not DATA, reason="TUNESMITH_DATA names no folder of real data")
def test_real_files_that_need_a_word():
    trec, clinc = Path(DATA or "", "trec/TREC.train"), Path(DATA or "", "clinc150/data_full.json")
    assert "TREC.train:66:60: byte 0xF0" in refused(str(trec)) and "`encoding: latin-1`" in refused(str(trec))
    assert len(read(trec, encoding="latin-1")) == 5452
    assert "`header: false`" in refused(str(clinc))
    assert len(read(clinc, header=False)) == 15000 and len(read(clinc, header=False, split="oos_test")) == 1000
