"""Strict reading: each fault is refused at its place, with a remedy, and nothing else than a Refusal ever comes out."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reading import QUICK, in_folder, refused, write  # noqa: F401  (in_folder is a fixture that every test here uses)
from tunesmith.errors import Refusal
from tunesmith.sources.text import decoding
from tunesmith.sources.text.read import read

# file, content, place that the message starts with, a word of it
BAD = [
    (
        "a.jsonl",
        '{"text":"a"}\n{"text":"b"}\n{"text":"c","label":\n',
        'a.jsonl:3:21: expected a value after `{"text":"c","label":`',
        "1 bad of 1",
    ),
    ("a.jsonl", '{"text":"a"}\n{"text":\n{"text":\n{"text":"d"}\n', "a.jsonl:2:9:", "2 bad of 3 lines"),
    ("a.jsonl", '{"text":"b","label":"y",}\n', "a.jsonl:1:24:", "Python or JSON5"),
    ("a.jsonl", "{'text':'a'}\n", "a.jsonl:1:2:", "Python or JSON5"),
    ("a.jsonl", '{"text":"a","label":None}\n', "a.jsonl:1:21:", "Python or JSON5"),
    ("a.jsonl", '{"text":"a" // said\n}\n', "a.jsonl:1:13:", "JSON5"),
    ("a.jsonl", '{text:"a"}\n', "a.jsonl:1:2:", "JSON5"),
    ("a.jsonl", '{"text":"a" "label":"b"}\n', "a.jsonl:1:13:", "expected a comma"),
    ("a.jsonl", '{"text" "a"}\n', "a.jsonl:1:9:", "expected a colon"),
    ("a.jsonl", '{"n":NaN}\n', "a.jsonl:1:6:", "not a finite number"),
    ("a.jsonl", '{"n":-Infinity}\n', "a.jsonl:1:6:", "not a finite number"),
    ("a.jsonl", '{"n":1e999}\n', "a.jsonl:1:6:", "not a finite number"),
    ("a.jsonl", '{"n":' + "9" * 5000 + "}\n", "a.jsonl:1:1:", "thousands of digits"),
    ("a.jsonl", '{"a":1}\n{"a":1,"b":2,"a":3}\n', "a.jsonl:2:14:", "`a` stands twice"),
    ("a.jsonl", '{"a":{"b":1,"b":2}}\n', "a.jsonl:1:13:", "`b` stands twice"),
    ("a.jsonl", '{"text":"a\\ud800b"}\n', "a.jsonl:1:11:", "surrogate"),
    ("a.jsonl", '{"text":"a\\u0000b"}\n', "a.jsonl:1:11:", "NUL"),
    ("a.jsonl", '{"text":"a\0b"}\n', "a.jsonl:1:11:", "NUL"),
    ("a.jsonl", '{"a":' * 2000 + "1" + "}" * 2000, "a.jsonl:1:1:", "over 100 levels"),
    ("a.jsonl", '{"a":' + "[" * 150 + "]" * 150 + "}", "a.jsonl:1:1:", "over 100 levels"),
    ("a.jsonl", '{"text":"' + "x" * 1_100_000 + '"}\n', "a.jsonl:1:1:", "1 MB"),
    ("a.jsonl", '["a","b"]\n["c","d"]\n', "a.jsonl:1:1:", "one object per row"),
    ("a.jsonl", '"abc"\n', "a.jsonl:1:1:", "one object per row"),
    ("a.jsonl", '{"text":"a"} {"text":"b"}\n', "a.jsonl:1:14:", "after the end"),
    ("a.jsonl", '{"text":"a\tb"}\n', "a.jsonl:1:11:", "raw tab"),
    ("a.jsonl", '{"text":"a \\d"}\n', "a.jsonl:1:12:", "backslash"),
    ("a.jsonl", '{"text":"abc\n', "a.jsonl:1:9:", "not closed"),
    ("a.jsonl", "", "a.jsonl:", "0 rows"),
    ("a.jsonl", b"\xef\xbb\xbf \n", "a.jsonl:", "0 rows"),
    ("a.json", '[{"text":"a"},\n {"text":"b"},\n]', "a.json:2:14:", "comma before a closing bracket"),
    ("a.json", '[{"text":"a"},\n{"text":"b"', "a.json:2:12:", "the text ends here"),
    ("a.json", '[{"text":"a"}\n{"text":"b"}]', "a.json:2:1:", "after record 1"),
    ("a.json", '[{"text":"a"},\n 3]', "a.json:2:2:", "one object per row"),
    ("a.json", '[["a","b"],["c","d"]]', "a.json:1:2:", "one object per row"),
    ("a.json", "[]", "a.json:", "0 rows"),
    ("a.json", '{\n"text":"a",\n"label":"b"}', "a.json:1:1:", "its keys are `text`, `label`"),
    ("a.json", '{"train":[{"a":1}],"more":[{"a":1}],"n":[{"a":1}]} x', "a.json:1:52:", "after the end"),
    ("a.json", '{"one":[{"a":1}],"two":[{"a":1}]}', "a.json:1:1:", "`split:`"),
    ("a.json", '{"train":[["a","b"]],"test":[["c","d"],["e","f"]]}', "a.json:1:1:", "`header: false`"),
    ("a.json", "hello", "a.json:1:1:", "expected a value"),
    ("a.json", "null", "a.json:1:1:", "one object per row"),
    ("a.csv", "text,label\n", "a.csv:", "0 rows: there is only a header"),
    ("a.csv", "text,label\na,b\nc,d,e\nf\n", "a.csv:3:5:", "3 columns where the first row has 2"),
    ("a.csv", "text,label\na,b\nc\nf,g\nh\n", "a.csv:3:2:", "2 such of 3 rows"),
    ("a.csv", 'text,label\n"a\nb",c\nd,"e\nf",g\n', "a.csv:5:4:", "3 columns"),
    ("a.csv", 'text,label\na,b\nc,"d\ne,f\n', "a.csv:3:3:", "a quote that opens here is not closed"),
    ("a.csv", 'text,label\n"a\nb,c\n"d,e\n', "a.csv:2:1:", "a quote that opens here is not closed"),
    ("a.csv", 'text,label\n"say "hi" now",b\n', "a.csv:2:7:", "after a closing quote"),
    ("a.csv", "text,text,label\na,b,c\n", "a.csv:1:6:", "`text` stands twice"),
    ("a.csv", "text;label\na;b;c\nd\n", "a.csv:2:5:", "columns"),
    ("a.csv", "my note;my label\nd\n", "a.csv:1:8:", 'delimiter: ";"'),
    ("a.csv", "text,label\na\rb,c\n", "a.csv:2:2:", "carriage return"),
    ("a.csv", 'text,label\n"' + "x" * 1_100_000 + '",a\n', "a.csv:2:", "1 MB"),
    ("a.csv", 'text,label\n"a\n' + "x,y\n" * 300_000, "a.csv:2:", "1 MB"),
    ("a.csv", b"text,label\na\0,b\n", "a.csv:2:2:", "NUL"),
    ("a.csv", b"text,label\na\xffb\xe4\xbd\xa0\xe5\xa5\xbd,x\n", "a.csv:2:2:", "byte 0xFF (byte 12 of the file)"),
    ("a.csv", "text,label\n味道很好,1\n".encode("gb18030"), "a.csv:2:2:", "`encoding: gb18030`"),
    ("a.csv", "text,label\n好吃，很好的,1\n".encode("big5"), "a.csv:2:1:", "`encoding: big5`"),
    ("a.csv", "text,label\nun café,1\n".encode("latin-1"), "a.csv:2:7:", "`encoding: latin-1`"),
    ("a.csv", "text,label\n好,1\n".encode("utf-16"), "a.csv:1:1:", "`encoding: utf-16`"),
    ("a.csv", "text,label\nab,1\n".encode("utf-16-le"), "a.csv:1:1:", "`encoding: utf-16-le`"),
    ("a.csv", b"PK\x03\x04...", "a.csv:", "zip archive"),
    ("a.tsv", "text\tlabel\na\tb\nc\n", "a.tsv:3:2:", "1 column where"),
    ("a.txt", "text\tlabel\na\tb\nc\n", "a.txt:3:2:", "1 column where"),
    ("a.conll", "a O\nb\n", "a.conll:2:2:", "without a tag"),
    ("a.conll", "a O\nb x O\n", "a.conll:2:6:", "3 columns"),
    ("a.txt", "a\tO\nb\tB-PER\n\tO\n", "a.txt:3:1:", "empty token"),
    ("a.txt", "NUM:dist How far?\nLOC:city Where?\n" * 10 + "what\n", "a.txt:21:1:", "COARSE:fine"),
    ("a.txt", "x" * 1_100_000, "a.txt:1:", "1 MB"),
    ("a.parquet", b"PAR1abc", "a.parquet:", "not a readable Parquet"),
    ("a.parquet", b"hello hello hello", "a.parquet:", "not a readable Parquet"),
    ("a.csv.gz", gzip.compress(b"text,label\na,b\n")[:-9], "a.csv.gz:", "damaged gzip"),
    ("missing.jsonl", None, "data.train:", "no file"),
    ("https://host/train.csv", None, "data.train:", "web address"),
    (".", None, "data.train:", "is a folder"),
    ("", None, "data.train:", "no file"),
    ("a\0b.csv", None, "data.train:", "no file"),
    ("a" * 5000, None, "data.train:", "cannot be opened"),
]


@pytest.mark.parametrize("name, content, place, word", BAD, ids=[f"{i}-{case[0][:12]}".replace("\0", "") for i, case in enumerate(BAD)])
def test_a_fault_is_refused_at_its_place(name, content, place, word):
    if content is not None:
        write(name, content)
    message = refused(name)
    assert message.startswith(place)
    assert word in message


@pytest.mark.parametrize(
    "options, word",
    [
        ({"encoding": "nope"}, "no encoding is named `nope`"),
        ({"encoding": "rot13"}, "no encoding is named"),
        ({"encoding": "ascii"}, "is not ascii"),
        ({"delimiter": "ab"}, "cannot separate"),
        ({"delimiter": ""}, "cannot separate"),
        ({"delimiter": "tab"}, 'delimiter: ","'),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, word):
    write("a.csv", "text,label\né,b\n")
    assert word in refused("a.csv", **options)


def test_the_near_file_is_named():
    write("train.jsonl", "{}")
    assert "did you mean train.jsonl?" in refused("trian.jsonl")
    assert "train.jsonl" in refused(".")


def test_an_unpacked_file_is_bounded(monkeypatch):
    write("a.txt.gz", gzip.compress(b"0" * 5_000_000))
    monkeypatch.setattr(decoding, "MAX_UNPACKED", 3_000_000)
    assert "more than 3,000,000 bytes" in refused("a.txt.gz")


@QUICK
@given(st.binary(max_size=200), st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.conll", "a"]))
def test_any_bytes_are_read_or_refused(data, name):
    try:
        assert len(read(write(name, data))) > 0
    except Refusal as refusal:
        assert str(refusal).isprintable() or "\n" in str(refusal)


@QUICK
@given(
    st.text(st.sampled_from("{}[]\",:'\\ \nabu0d8-1.eNtO\t;"), max_size=60),
    st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt", "a.conll"]),
)
def test_any_text_is_read_or_refused(text, name):
    try:
        read(write(name, text))
    except Refusal as refusal:
        assert refusal.where.startswith(name)
