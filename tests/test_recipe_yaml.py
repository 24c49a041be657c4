"""Strict reading of recipes: what is read, what is refused and where, and how arguments change it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import Refusal
from tunesmith.recipe_yaml import MAX_BYTES, Places, apply_overrides, closest, load_yaml

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RECIPE = """\
# A comment.
model: sentence-transformers/all-MiniLM-L6-v2
task: classify   # what to learn
data: {train: train.jsonl, eval: dev.jsonl}
method:
  kind: lora
  rank: 16
  into: [query, value]
stream:
  - kind: few
    shots: 8
"""


def read(folder: Path, text: str | bytes) -> tuple[dict[str, Any], Places]:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_yaml(path)


def refused(folder: Path, text: str | bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(folder, text)
    caught.value.where = caught.value.where.replace(str(folder) + "/", "")
    return caught.value


def test_a_recipe_with_its_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    data, places = load_yaml("recipe.yaml")
    assert data == {
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "task": "classify",
        "data": {"train": "train.jsonl", "eval": "dev.jsonl"},
        "method": {"kind": "lora", "rank": 16, "into": ["query", "value"]},
        "stream": [{"kind": "few", "shots": 8}],
    }
    assert places.where("method.rank") == "recipe.yaml:7:3"
    assert {key: places.marks[key] for key in ("model", "data.eval", "method.into.1", "stream.0", "stream.0.shots")} == {
        "model": (2, 1),
        "data.eval": (4, 28),
        "method.into.1": (8, 17),
        "stream.0": (10, 5),
        "stream.0.shots": (11, 5),
    }
    assert places.where("method.rnak") == "recipe.yaml:5:1"  # the nearest key above that was written
    assert places.where("seed") == "recipe.yaml"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("true", True), ("false", False), ("null", None)),
        *(("0", 0), ("8", 8), ("-3", -3), ("+3", 3), ("18446744073709551615", 2**64 - 1)),
        *(("1e-4", 1e-4), ("2e5", 2e5), ("5.0E-5", 5e-5), ("0.1", 0.1), (".5", 0.5), ("5.", 5.0), ("-1.5e+3", -1500.0), ("0.0", 0.0)),
        *(("lora", "lora"), ("a b", "a b"), ("y", "y"), ("n", "n"), ("none", "none"), ("1.5.2", "1.5.2"), ("16M", "16M"), ("1e", "1e")),
        *(("C:\\data", "C:\\data"), ("a:b", "a:b"), ("host:8080", "host:8080"), ("模型", "模型"), ("08/15", "08/15")),
        *(("'010'", "010"), ('"yes"', "yes"), ("'~'", "~"), ("''", ""), ('"a\\tb"', "a\tb"), ("'it''s'", "it's"), ('"1e-4"', "1e-4")),
        *(
            ("|\n  one\n  two\n", "one\ntwo\n"),
            (">-\n  one\n  two\n", "one two"),
            ("{}", {}),
            ("[]", []),
            ("[1, [a, {b: 2}]]", [1, ["a", {"b": 2}]]),
        ),
    ],
)
def test_what_is_read(tmp_path: Path, text: str, value: Any) -> None:
    got = read(tmp_path, f"a: {text}\n")[0]["a"]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("scalar", "instead"),
    [
        *(("010", "write 10,"), ("-007", "write -7,"), ("01.5", "write 1.5,"), ("00", "write 0,"), ("09", "write 9,")),
        *((word, "write true,") for word in ("yes", "Yes", "YES", "on", "On", "True", "TRUE")),
        *((word, "write false,") for word in ("no", "No", "off", "OFF", "False")),
        *((word, "write null,") for word in ("~", "None", "Null", "NULL")),
        *(("1_000", "write 1000,"), ("1_0.5", "write 10.5,"), ("0x1F", "decimal"), ("0o17", "decimal"), ("0b11", "decimal")),
        *(("12:30:00", "'12:30:00' in quotes"), ("1:30", "quotes"), ("-1:30.5", "quotes")),
        *((".inf", "finite"), ("-inf", "finite"), (".NaN", "finite"), ("nan", "finite"), ("1e999", "smaller"), ("9" * 21, "smaller")),
        *(("2024-01-01", "'2024-01-01' in quotes"), ("2024-01-01 10:00:00", "quotes"), ("=", "quotes"), ("<<", "quotes")),
        *(("a\u00a0b", "quote"), ("a\u200bb", "quote"), ("", "write null")),
    ],
)
def test_scalars_that_surprise(tmp_path: Path, scalar: str, instead: str) -> None:
    in_map, in_list = refused(tmp_path, f"x: 1\na: {scalar}\n"), refused(tmp_path, f"a:\n- 1\n- {scalar}\n")
    assert instead in in_map.fix and instead in in_list.fix
    assert in_map.where == ("recipe.yaml:2:4" if scalar else "recipe.yaml:2:3")
    assert in_list.where == ("recipe.yaml:3:3" if scalar else "recipe.yaml:3:2")
    assert read(tmp_path, f'a: "{scalar}"\n')[0] == {"a": scalar}  # what every message offers: quoted, it is text
    with pytest.raises(Refusal, match="argument 'a="):
        apply_overrides({}, Places("recipe.yaml", {}), [f"a={scalar}"])


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "1:1", "nothing here"),
        ("# only a comment\n", "1:1", "nothing here"),
        ("# a list\n- a\n", "2:1", "a map of keys"),
        ("rank:8\n", "1:1", "a map of keys"),
        ("a: 1\nb: 2\n'a': 3\n", "3:1", "`a` is given twice"),
        ("m:\n  a: 1\n  a: 1\n", "3:3", "`a` is given twice"),
        ("a:\n\tb: 1\n", "2:1", "a tab"),
        ("a: 1 \t# why\n", "1:6", "a tab"),
        ("a: 1\nb: x\x01y\n", "2:5", "U+0001"),
        ("a: x\u2028y\n", "1:5", "U+2028"),
        (b"a: 1\nb: \xc3\xa9\xff\n", "2:5", "not UTF-8"),
        ("a: 1\n".encode("utf-16"), "1:1", "not UTF-8"),
        ("a: !!python/object/apply:os.system ['ls']\n", "1:4", "no tags"),
        ("a: !!str 5\n", "1:4", "no tags"),
        ("a: !x\n  b: 1\n", "1:4", "no tags"),
        ("a: &x [1]\nb: [*x, *x]\n", "1:4", "no anchors"),
        ("a: *x\n", "1:4", "no anchors"),
        ("<<: {a: 1}\n", "1:1", "merge"),
        ("1: a\n", "1:1", "must be text"),
        ("'': a\n", "1:1", "must be text"),
        ("? [a]\n: b\n", "1:3", "must be text"),
        ("a: {{ text }}\n", "1:5", "must be text"),
        ("a: foo\n  bar\n", "1:4", "next line"),
        ("a: " + "[" * 50, "1:35", "nested more than"),
        ("a: 1\n---\nb: 2\n", "2:1", "second document"),
        ('{"a": 1}\n{"a": 2}\n', "2:1", "second document"),
        ("method: lora\n  rank: 8\n", "2:7", "cannot follow here"),
        ("a: b: c\n", "1:5", "cannot follow here"),
        ("a: - b\n", "1:4", "list cannot begin"),
        ("a: 1\nrank:8\nb: 1\n", "2:1", "not `key: value`"),
        ("b: 1\na: 'abc\n", "2:4", "never closed"),
        ("a: [1,\n  2\nb: 3\n", "1:4", "never closed"),
        ("a: {b: 1\n", "1:4", "never closed"),
        ("a: 'x' y\n", "1:8", "where a key should be"),
        ("a:\n    b: 1\n  c: 2\n", "3:3", "indentation"),
        ("a: @x\n", "1:4", "begin with this character"),
        ("a: *.weight\n", "1:5", "begin with this character"),
        ("a: ]\n", "1:4", "begin with this character"),
        ('a: "\\q"\n', "1:6", "unknown escape"),
        ('a: "\\UFFFFFFFF"\n', "1:1", "unknown escape"),
        ("a: |x\n", "1:5", "not YAML"),
        ("%YAML 1." + "9" * 5000 + "\n---\na: 1\n", "1:1", "not YAML"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str | bytes, where: str, what: str) -> None:
    got = refused(tmp_path, text)
    assert what in got.what and got.where == f"recipe.yaml:{where}" and got.fix
    assert "\n" not in got.what + got.why + got.fix


def test_a_key_given_twice_names_both_lines(tmp_path: Path) -> None:
    got = refused(tmp_path, "a: 1\nb: 2\na: 3\n")
    assert got.where == "recipe.yaml:3:1" and got.why.endswith("recipe.yaml:1:1")


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path, "a\0b"):
        with pytest.raises(Refusal, match="cannot read the recipe"):
            load_yaml(path)
    assert "the recipe, not the data" in refused(tmp_path, b"a" * (MAX_BYTES + 1)).fix


@pytest.mark.parametrize("text", ["\ufeffa: 1\n", "a: 1\r\n", "---\na: 1\n...\n", "a: 1", '{"a": 1}'])
def test_harmless_differences_of_files(tmp_path: Path, text: str) -> None:
    data, places = read(tmp_path, text)
    assert data == {"a": 1} and "a" in places.marks


TEXT = st.text(st.characters(codec="utf-8", categories=("L", "M", "N", "P", "S", "Zs")), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
TREES = st.recursive(SCALARS, lambda node: st.lists(node, max_size=3) | st.dictionaries(TEXT.filter(bool), node, max_size=3), max_leaves=8)


@FEW
@given(st.dictionaries(TEXT.filter(bool), TREES, max_size=4))
def test_json_is_read_as_json(tmp_path: Path, tree: dict[str, Any]) -> None:
    assert read(tmp_path, json.dumps(tree, ensure_ascii=False))[0] == tree


@FEW
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**18), 10**18))
def test_numbers_as_python_writes_them(tmp_path: Path, number: float) -> None:
    got = read(tmp_path, f"a: {number!r}\n")[0]["a"]
    assert got == number and type(got) is type(number) and math.copysign(1, got) == math.copysign(1, number)


@settings(FEW, max_examples=200)
@given(st.text(st.sampled_from("ab01:-{}[],'\"#&*!|>%@?~=.<_ \n\\Ux"), max_size=25) | st.text(max_size=10))
def test_any_text_is_read_or_refused(tmp_path: Path, text: str) -> None:
    try:
        data, places = read(tmp_path, text.encode("utf-8", "replace"))
    except Refusal as refusal:
        assert refusal.where.startswith(f"{tmp_path}/recipe.yaml") and refusal.fix
    else:
        assert isinstance(data, dict) and set(data) <= set(places.marks)


def test_overrides_change_data_and_places() -> None:
    data = {"method": "lora", "data": {"train": "a.jsonl"}, "budget": {"epochs": 3}}
    marks = {"method": (1, 1), "data": (2, 1), "data.train": (2, 8), "budget": (3, 1), "budget.epochs": (3, 10)}
    before = json.dumps(data)
    arguments = ["method.rank=8", "data.eval=dev.jsonl", "budget.epochs=2", "stream.order=[a, b]", "seed=1", "seed=2"]
    got, places = apply_overrides(data, Places("recipe.yaml", marks), arguments)
    assert got == {
        "method": {"kind": "lora", "rank": 8},
        "data": {"train": "a.jsonl", "eval": "dev.jsonl"},
        "budget": {"epochs": 2},
        "stream": {"order": ["a", "b"]},
        "seed": 2,
    }
    assert json.dumps(data) == before
    assert places.where("budget.epochs") == "argument 'budget.epochs=2'"
    assert places.where("stream.order.0") == "argument 'stream.order=[a, b]'"
    assert (places.where("data.train"), places.where("method.kind")) == ("recipe.yaml:2:8", "recipe.yaml:1:1")


@pytest.mark.parametrize(
    ("data", "arguments", "expected"),
    [
        ({}, ["a=1e-4"], {"a": 1e-4}),
        ({}, ["a=null", "b=true", "c='010'", 'd="x: y"'], {"a": None, "b": True, "c": "010", "d": "x: y"}),
        ({}, ["a=Q: why # not?", "b=*.weight", "c=x=y"], {"a": "Q: why # not?", "b": "*.weight", "c": "x=y"}),
        ({}, ["a={kind: lora, rank: 8}", "a.rank=4"], {"a": {"kind": "lora", "rank": 4}}),
        ({"a": {"b": 1}}, ["a=lora"], {"a": "lora"}),
        ({"a": {"b": 1}}, ["a=lora", "a.rank=2"], {"a": {"kind": "lora", "rank": 2}}),
        ({"a": "lora"}, ["a.kind=full"], {"a": {"kind": "full"}}),
        ({"a": None}, ["a.b.c=1"], {"a": {"b": {"c": 1}}}),
        ({"a": {"b": "x"}}, ["a.b.c=1"], {"a": {"b": {"kind": "x", "c": 1}}}),
        ({"a": {"b": 1}}, [], {"a": {"b": 1}}),
    ],
)
def test_overrides(data: dict[str, Any], arguments: list[str], expected: dict[str, Any]) -> None:
    assert apply_overrides(data, Places("recipe.yaml", {}), arguments)[0] == expected


def test_a_replaced_value_takes_its_old_places_along() -> None:
    places = Places("recipe.yaml", {"method": (1, 1), "method.rank": (2, 3), "methods": (9, 1)})
    got = apply_overrides({"method": {"rank": 1}, "methods": 1}, places, ["method.rank=2", "method=full"])[1]
    assert got.where("method.rank") == got.where("method") == "argument 'method=full'"
    assert got.where("methods") == "recipe.yaml:9:1"


@pytest.mark.parametrize(
    "argument",
    [
        "rank",
        "=8",
        "--rank=8",
        ".a=1",
        "a..b=1",
        "a.=1",
        "a b=1",
        "a=[1, 2",
        "a='x",
        "a='x' y",
        "a={b: 1, b: 2}",
        "a=[*x]",
        "l.0=1",
        "n.x=1",
    ],
)
def test_arguments_that_are_refused(argument: str) -> None:
    with pytest.raises(Refusal) as caught:
        apply_overrides({"l": [1], "n": 3}, Places("recipe.yaml", {}), [argument])
    assert caught.value.where == f"argument {argument!r}" and caught.value.fix


def test_an_argument_says_how_quotes_outlive_the_shell() -> None:
    with pytest.raises(Refusal) as caught:
        apply_overrides({}, Places("recipe.yaml", {}), ["data.version=010"])
    assert "data.version=\"'010'\"" in caught.value.why


@pytest.mark.parametrize(
    ("word", "expected"),
    [("rnak", "rank"), ("LoRA", "lora"), ("learning-rate", "learning_rate"), ("learningrate", "learning_rate"), ("zzz", None), ("", None)],
)
def test_closest(word: str, expected: str | None) -> None:
    assert closest(word, ["rank", "lora", "learning_rate"]) == expected
