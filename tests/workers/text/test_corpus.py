"""Token ids of a corpus: the text, once, the same for every mode."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.workers.models.folders import save
from workers.cell import ModelRef
from workers.models.load import LoadError, load_tokenizer
from workers.text import builtin, corpus, sources
from workers.text.corpus import CorpusError, decode, held_out_tokens, token_ids
from workers.text.files import look_through

REF = ModelRef(target="pocket")
LINES = [f"Line {index}: the quick brown fox, naïve as ever." for index in range(3000)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OOMLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ids_of(name: str | Path, start: int = 0, count: int = 500, model: str = "pocket") -> np.ndarray:
    return token_ids(str(name), model, REF, start, count)


def test_a_text_file_comes_back_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES) + "\n")
    ids = ids_of(path, 0, 20_000)
    assert ids.dtype == np.int32
    assert "\n".join(LINES).startswith(decode([ids.tolist()], "pocket", REF)[0].rstrip("\ufffd"))


def test_records_are_documents_that_end(tmp_path: Path) -> None:
    jsonl, parquet = tmp_path / "records.jsonl", tmp_path / "records.parquet"
    jsonl.write_text("".join(json.dumps({"text": line, "other": 1}) + "\n" for line in LINES))
    polars.DataFrame({"text": LINES}).write_parquet(parquet)
    ids = ids_of(jsonl)
    assert np.array_equal(ids, ids_of(parquet))
    end = load_tokenizer("pocket", REF).eos_token_id
    first = decode([ids[: int(np.argmax(ids == end))].tolist()], "pocket", REF)[0]
    assert first == LINES[0]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_without_a_text_are_skipped_and_counted(tmp_path: Path, suffix: str) -> None:
    whole, holes = tmp_path / f"whole{suffix}", tmp_path / f"holes{suffix}"
    texts = LINES[:50]
    for path, rows in ((whole, texts), (holes, [texts[0], None, *texts[1:40], "", *texts[40:], None])):
        write_rows(path, rows)
    if suffix == ".jsonl":
        holes.write_text(holes.read_text() + '\n{"other": 1}\n')
    assert np.array_equal(ids_of(whole, 0, 600), ids_of(holes, 0, 600))
    absent = suffix == ".jsonl"
    said = f"{3 + absent} rows skipped \\(`text` is null, empty{', no `text`' * absent}\\), row 2 the first"
    with pytest.raises(
        CorpusError, match=f"tokens for pocket, 90,000 asked for; {said}; name a longer corpus"
    ):
        ids_of(holes, 0, 90_000)


@pytest.mark.parametrize("name", ["run[1].txt", "run*.txt", "run?.jsonl", "{a,b}.parquet", "run[!2].jsonl"])
def test_a_path_is_no_pattern(tmp_path: Path, name: str) -> None:
    """Beside files that the pattern would match."""
    suffix = Path(name).suffix
    for other in ("run1", "a", "b", "run3"):
        write_rows(tmp_path / f"{other}{suffix}", ["other"] * 300)
    write_rows(tmp_path / name, LINES[:30])
    text = decode([ids_of(tmp_path / name, 0, 200).tolist()], "pocket", REF)[0]
    assert text.startswith(LINES[0])
    assert "other" not in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "latin.txt",
            "caf\xe9 ".encode("latin-1") * 90,
            r"it is not UTF-8 \(a byte 0xe9 in it\); save it as UTF-8",
        ),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n', r"it is not UTF-8 \(a byte 0xe9 in it\)"),
        ("half.jsonl", b'{"text": "one"}\n{"text": "\\ud83d"}\n', "row 2: .*half of a surrogate pair"),
    ],
)
def test_what_is_no_text_is_refused_with_its_remedy(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=f"corpus .*{name}: {words}"):
        ids_of(tmp_path / name, 0, 10)
    with pytest.raises(CorpusError, match=words):
        look_through(tmp_path / name, 10)


@pytest.mark.parametrize("content", ["", "\n\n\n"])
def test_an_empty_text_is_told_before_anything_runs(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    with pytest.raises(CorpusError, match="it has no text"):
        look_through(path, 10)
    path.write_text(content + "one")
    assert str(look_through(path, 10)) == ""


def write_rows(path: Path, rows: list[str | None]) -> None:
    if path.suffix == ".parquet":
        polars.DataFrame({"text": rows}).write_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    else:
        path.write_text("\n".join(rows))


@pytest.mark.parametrize("template", ["$A", "<s> $A", "<s> $A </s>"])
def test_a_text_begins_once_with_what_its_tokenizer_puts_there(tmp_path: Path, template: str) -> None:
    """As Llama's tokenizer begins a text, and as some end one, too."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "one": 2, "two": 3, "a": 4}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        save(tmp_path / "model")
    )
    path = tmp_path / "records.jsonl"
    path.write_text('{"text": "one two"}\n{"text": "two"}\n')
    text = [2, 3, 1, 3, 1]
    assert (
        ids_of(path, 0, 5, str(tmp_path / "model")).tolist()
        == ([0, *text] if "<s>" in template else text)[:5]
    )


@settings(max_examples=20)
@given(start=st.integers(0, 9000), count=st.integers(0, 900))
def test_any_part_is_a_part_of_the_whole(start: int, count: int) -> None:
    whole = ids_of("builtin", 0, 10_000)
    assert np.array_equal(ids_of("builtin", start, count), whole[start : start + count])


def test_tokenised_once_then_read(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ids_of("builtin")
    monkeypatch.delattr(corpus, "load_tokenizer")  # any tokenising fails from here on
    assert np.array_equal(first, ids_of("builtin"))


def test_a_changed_file_is_tokenised_anew(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one " * 1000)
    first = ids_of(path, 0, 100)
    path.write_text("another " * 1000)
    assert not np.array_equal(first, ids_of(path, 0, 100))


def test_tokenised_only_as_far_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_PREFIX", 1024)
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    read: list[str] = []

    def documents(*arguments: sources.Source) -> Iterator[str]:
        for document in unwatched(*arguments):
            read.append(document)
            yield document

    unwatched = sources.documents
    monkeypatch.setattr(sources, "documents", documents)
    short = ids_of(path, 0, 1000)
    assert len(read) < 100
    assert np.array_equal(short, ids_of(path, 0, 3000)[:1000])
    with pytest.raises(CorpusError, match=r"[\d,]+ tokens for pocket, 1,000,000 asked for"):
        ids_of(path, 0, 10**6)


def test_random_models_borrow_the_pocket_tokenizer(tmp_path: Path) -> None:
    assert np.array_equal(ids_of("builtin", model="random:pythia-2.8b"), ids_of("builtin"))
    narrow = f"random:{save(tmp_path, vocab_size=100)}"
    assert np.array_equal(ids_of("builtin", model=narrow), ids_of("builtin"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "no such file"),
        ("image.png", "", ".png is not read"),
        ("short.txt", "too short", r"\d tokens for pocket, 500 asked for"),
        ("empty.txt", "", "0 tokens"),
        (
            "other.jsonl",
            '{"body": "no text"}\n',
            "none of its 1 rows has a text in a field `text`; its fields are body; rename",
        ),
        ("broken.jsonl", '{"text": "one"}\n{\n', "line 2 is not JSON"),
        ("list.jsonl", '[{"text": "one"}]\n', "row 1 is .* not a record"),
        ("number.jsonl", '{"text": "one"}\n{"text": 7}\n', "row 2: `text` is '7', not a text"),
        ("null.jsonl", '{"text": null}\n{"text": ""}\n', "none of its 2 rows has a text"),
        ("latin.txt", b"na\xefve", "it is not UTF-8"),
        (
            "pointer.txt",
            "version https://git-lfs.github.com/spec/v1\nsize 9\n",
            "Git LFS pointer.*`git lfs pull`",
        ),
        ("broken.parquet", "not parquet", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorpusError, match=message) as raised:
        ids_of(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="has no tokenizer"):
        ids_of("builtin", model=str(save(tmp_path)))


def test_builtin_begins_with_what_the_pair_has_not_seen() -> None:
    held_out = held_out_tokens("pocket", REF)
    assert held_out >= 8064  # a prompt of 64 and 8,000 scored tokens
    text = decode([ids_of("builtin", 0, held_out).tolist()], "pocket", REF)[0]
    unseen = {
        builtin.fingerprint(p) for topic in builtin.held_out_documents() for p in builtin.paragraphs(topic)
    }
    end = load_tokenizer("pocket", REF).eos_token
    parts = [part for topic in text.split(end) for part in builtin.paragraphs(topic)]
    assert {builtin.fingerprint(part) for part in parts} - {""} == unseen - {""}
    assert len(parts) - 1 == sum(len(builtin.paragraphs(topic)) for topic in builtin.held_out_documents())
