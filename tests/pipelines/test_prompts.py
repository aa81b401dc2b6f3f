"""The syntax of prompts: what chance decides, what is weighed, and that plain text stays plain."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sfumato.pipelines.errors import BadInput
from sfumato.pipelines.prompts import LoraTag, Resolved, Span, escape, parse, plain, resolve

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
PIECES = [*"ab (){}[]|:\\<>_.1,", "BREAK", "<lora:", "__x__", "nan"]
SYNTAX = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


def spans(prompt: str) -> list[tuple[str, float]]:
    (chunk,) = parse(prompt)
    return [(text, round(weight, 6)) for text, weight in chunk]


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a cube", [("a cube", 1)]),
        ("a (red) cube", [("a ", 1), ("red", 1.1), (" cube", 1)]),
        ("((red))", [("red", 1.21)]),
        ("(red:1.3), [blue]", [("red", 1.3), (", ", 1), ("blue", 0.909091)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        ("(red: .5 )", [("red", 0.5)]),
        ("(dim:-1)", [("dim", -1)]),
        (r"a \(red\) \[x\] \\", [("a (red) [x] \\", 1)]),
        ("(red)(der)", [("redder", 1.1)]),
        ("(time: noon)", [("time: noon", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("a (b", [("a (b", 1)]),
        ("a) :( b]", [("a) :( b]", 1)]),
        ("(a [b) c]", [("a [b", 1.1), (" c]", 1)]),
        ("(a [(b:2) c)", [("a [", 1.1), ("b", 2.2), (" c", 1.1)]),
        ("()", []),
    ],
)
def test_weights(prompt: str, found: list) -> None:
    assert spans(prompt) == found


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("", [[]]),
        ("a BREAK b", [[("a", 1)], [("b", 1)]]),
        ("a\n BREAK \nb BREAK", [[("a", 1)], [("b", 1)]]),
        ("(a BREAK b:2)", [[("a", 2)], [("b", 2)]]),
        ("BREAK a", [[], [("a", 1)]]),
        ("BREAKFAST outBREAK", [[("BREAKFAST outBREAK", 1)]]),
    ],
)
def test_chunks(prompt: str, found: list) -> None:
    assert [[tuple(span) for span in chunk] for chunk in parse(prompt)] == found


@pytest.mark.parametrize("weight", ["nan", "-inf", "Infinity", "1.2.3", "1,2", "101", "9" * 400])
def test_bad_weights(weight: str) -> None:
    with pytest.raises(BadInput, match="no weight") as error:
        parse(f"a (cube:{weight})")
    assert error.value.field == "prompt" and len(str(error.value)) < 200
    with pytest.raises(BadInput, match="weight"):
        parse("(" * 50 + "a" + ")" * 50)


def test_plain_language_keeps_its_brackets() -> None:
    kept = r"a cube (red) [big] :( \ {a} a\b \\ BREAK"
    assert plain(kept) == kept
    assert plain(r"a (red:1.3) cube \(x\) ((y:2))") == "a red cube (x) (y)"


CHOICE = "a {red|blue} {{big|small}|} cube"


def test_choices() -> None:
    found = {resolve(CHOICE, seed).text for seed in range(60)}
    assert found == {f"a {colour} {size} cube" for colour in ("red", "blue") for size in ("big", "small", "")}
    assert resolve(CHOICE, 3) == resolve(CHOICE, 3)
    pairs = {(resolve("{a|b}", s, salt="prompt").text, resolve("{a|b}", s, salt="x").text) for s in range(30)}
    assert len(pairs) == 4


@pytest.mark.parametrize(
    "text", ["{a}", "{", "}{", "a|b", "{a {b", "my__name__x", "<b> <lora>", "\\", "\\(a", "5 < 6"]
)
def test_what_makes_no_pair_is_text(text: str) -> None:
    assert resolve(text, 1) == Resolved(text)


def test_escapes() -> None:
    assert resolve(r"\{a\|b\} \<lora:x:1>", 1) == Resolved("{a|b} <lora:x:1>")
    assert resolve(r"{a\|b|a\|b}", 1).text == "a|b"


@pytest.mark.parametrize(
    ("prompt", "text", "loras"),
    [
        ("a cube <lora:ink:0.8>", "a cube", [("ink", 0.8)]),
        ("<lora:a> x <lora:b/c d:-1.5> y", "x y", [("a", 1), ("b/c d", -1.5)]),
        ("a,<lora:ink:1>b", "a, b", [("ink", 1)]),
        ("{<lora:a:1>|<lora:a:1>} x", "x", [("a", 1)]),
    ],
)
def test_loras(prompt: str, text: str, loras: list) -> None:
    assert resolve(prompt, 1) == Resolved(text, tuple(LoraTag(*lora) for lora in loras))


@pytest.mark.parametrize(
    "tag", ["<lora:>", "<lora::1>", "<lora:a:b>", "<lora:a:nan>", "<lora:a:1e9>", "<lora:a:1><lora:a:2>"]
)
def test_bad_loras(tag: str) -> None:
    with pytest.raises(BadInput, match=r"lora|LoRA"):
        resolve(f"x {tag}", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "wild"
    (folder / "deep").mkdir(parents=True)
    (folder / "colour.txt").write_text("# comment\n\nred\n{dark|light} blue\n")
    (folder / "deep" / "my_thing.txt").write_text("\ufeff__colour__ cube <lora:ink:0.5>", encoding="utf-8")
    (folder / "loop.txt").write_text("__loop__ __loop__")
    (folder / "empty.txt").write_text("# nothing\n")
    (folder / "bad.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


def test_wildcards(folder: Path) -> None:
    found = {resolve("a __deep/my_thing__", seed, wildcards=folder) for seed in range(40)}
    assert {text for text, _ in found} == {"a red cube", "a dark blue cube", "a light blue cube"}
    assert {loras for _, loras in found} == {(LoraTag("ink", 0.5),)}
    assert resolve("__colour__", 1).text == "__colour__"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../secret", "no name in a folder"),
        ("deep/../../secret", "no name in a folder"),
        ("/etc/hostname", "no name in a folder"),
        ("C:\\x", "no name in a folder"),
        ("a" * 300, "300 characters"),
        ("link", "leads out"),
        ("color", "nearest are colour"),
        ("empty", "no line"),
        ("bad", "UTF-8"),
        ("loop", "deep in each other"),
    ],
)
def test_bad_wildcards(name: str, said: str, folder: Path) -> None:
    with pytest.raises(BadInput, match=said) as error:
        resolve(f"a __{name}__", 1, wildcards=folder)
    assert error.value.field in ("wildcards", "prompt")


def test_wildcards_cannot_explode(folder: Path) -> None:
    (folder / "boom.txt").write_text(" ".join(["__colour__"] * 200))
    (folder / "bang.txt").write_text(" ".join(["__boom__"] * 200))
    with pytest.raises(BadInput, match="more than"):
        resolve("__bang__", 1, wildcards=folder)


@settings(max_examples=150, deadline=None)
@given(TEXT)
def test_text_without_syntax_is_untouched(text: str) -> None:
    text = "".join(c for c in text if c not in "{}|\\<()[]").replace("BREAK", "")
    assert resolve(text, 1) == Resolved(text)
    assert parse(text) == ([[Span(text, 1.0)]] if text else [[]])
    assert plain(text) == text


@settings(max_examples=150, deadline=None)
@given(TEXT)
def test_escaped_text_is_read_as_it_was(text: str) -> None:
    text = text.replace("BREAK", "")
    assert "".join(span.text for span in parse(escape(text))[0]) == text


@settings(max_examples=300, deadline=None)
@given(SYNTAX, st.integers(0, 5))
def test_any_syntax_is_read_or_refused(prompt: str, seed: int) -> None:
    try:
        found = resolve(prompt, seed)
        chunks = parse(found.text)
        plain(found.text)
    except BadInput:
        return
    assert resolve(prompt, seed) == found
    said = "".join(span.text for chunk in chunks for span in chunk)
    assert len(said) <= len(prompt)
    assert all(abs(span.weight) <= 100 and span.text for chunk in chunks for span in chunk)


def test_long_prompts_take_no_time() -> None:
    for text in ("(" * 50_000, ")" * 50_000, "([" * 25_000 + "])" * 25_000, " " * 50_000, "{|" * 25_000):
        try:
            parse(resolve(text, 1).text)
        except BadInput as error:
            assert "weight" in str(error)
