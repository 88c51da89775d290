"""Corpora: parsing, and the real ones where they are on this machine."""

import ast
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jattn.data import text
from jattn.data.corpus import Corpus, Document
from jattn.data.source import Source, digest_of, find_folder
from jattn.data.sources import BROWN, MOBY_DICK, STATE_OF_THE_UNION, WIKIPEDIA_SAMPLE


def the(source: Source, load: Callable[[], Corpus]) -> Corpus:
    """A real corpus; a test that asks for one that is not on this machine is skipped."""
    if find_folder(source) is None:
        pytest.skip(f"{source.name} is not on this machine: {source.command}")
    return load()


def check_form(corpus: Corpus) -> None:
    names = [document.name for document in corpus.documents]
    assert names == sorted(set(names))
    assert all(document.content for document in corpus.documents)
    assert b"\0" not in b"".join(document.content for document in corpus.documents)
    "".join(document.content.decode() for document in corpus.documents)
    assert corpus.size == sum(len(document.content) for document in corpus.documents)
    assert corpus.digest == digest_of(corpus.documents)


def words_of(corpus: Corpus, name: str) -> list[str]:
    (content,) = (document.content for document in corpus.documents if document.name == name)
    return content.decode().split()


# Python's own text ------------------------------------------------------------------------------------------------


def test_python_library() -> None:
    corpus = text.python_library()
    check_form(corpus)
    names = {document.name for document in corpus.documents}
    assert {"library/argparse.py", "library/asyncio/base_events.py", "reference/assert", "reference/yield"} <= names
    assert not [name for name in names if "/test" in name or "site-packages" in name or "encodings" in name]
    assert not [name for name in names if "sysconfigdata" in name or "topics" in name]
    assert words_of(corpus, "reference/assert")[:3] == ["The", '"assert"', "statement"]
    root = Path(sysconfig.get_path("stdlib"))
    library = [document for document in corpus.documents if document.name.startswith("library/")]
    assert len(library) > 400
    for document in library[::50]:
        assert document.content == (root / document.name.removeprefix("library/")).read_bytes()
        ast.parse(document.content)
    assert 8e6 < corpus.size < 13e6
    assert text.python_library() == corpus


def stdlib_at(root: Path, monkeypatch: pytest.MonkeyPatch, release: str = "9.9.9") -> None:
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: {"stdlib": str(root)}[name])
    monkeypatch.setattr(text.platform, "python_version", lambda: release)
    monkeypatch.setattr(text.platform, "python_implementation", lambda: "CPython")


def test_which_files_of_the_library_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = ("b.py", "a.py", "package/__init__.py", "package/deep/one.py", "package/testing.py")
    left = (
        "test/t.py", "package/tests/t.py", "idlelib/idle_test/t.py", "site-packages/p/p.py", "dist-packages/p.py",
        "encodings/cp1252.py", "config-3.11-x86/python-config.py", "_sysconfigdata__linux.py", "__pycache__/a.py",
        "pydoc_data/topics.py", "a.pyc", "LICENSE.txt",
    )  # fmt: skip
    for name in read + left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    stdlib_at(tmp_path, monkeypatch)
    corpus = text.python_library()
    library = [document for document in corpus.documents if not document.name.startswith("reference/")]
    assert library == [Document(f"library/{name}", f"# {name}".encode()) for name in sorted(read)]


def test_a_known_release_must_have_the_known_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("print('patched')")
    stdlib_at(tmp_path, monkeypatch)
    digest = text.python_library().digest  # of a release that is not known: accepted
    stdlib_at(tmp_path, monkeypatch, "3.11.7")
    known = text.PYTHON_LIBRARY_SHA256["CPython 3.11.7"]
    with pytest.raises(ValueError, match=f"must have SHA-256 {known} in CPython 3.11.7; .* has {digest}"):
        text.python_library()


def test_an_interpreter_without_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdlib_at(tmp_path, monkeypatch)
    with pytest.raises(FileNotFoundError, match="the standard library's source is not in"):
        text.python_library()


# Wikipedia --------------------------------------------------------------------------------------------------------


def page(title: str, content: str, redirect: str = "") -> str:
    return f"<page><title>{title}</title>{redirect}<revision><text>{content}</text></revision></page>"


def dump(*pages: str) -> bytes:
    return f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'.encode()


def test_articles_of_a_dump() -> None:
    pages = dump(page("Ü &amp; B", "&lt;ref&gt; '''é'''"), page("R", "x", '<redirect title="B"/>'), page("A", "a\nb"))
    articles = list(text.parse_dump(pages))
    assert articles == [("Ü & B", "<ref> '''é'''".encode()), ("A", b"a\nb")]
    for wrong in (dump("<page><title>A</title></page>"), dump("<page><revision><text>x</text></revision></page>")):
        with pytest.raises(ValueError, match="every page of a MediaWiki export must have a title and a text"):
            list(text.parse_dump(wrong))


@given(data=st.data())
def test_dumps_that_are_cut_short_or_no_xml(data: st.DataObject) -> None:
    whole = dump(page("A", "text"))
    broken = data.draw(st.integers(0, len(whole) - 1).map(lambda kept: whole[:kept]) | st.binary(max_size=50))
    with pytest.raises(ValueError, match="a MediaWiki export must be XML"):
        list(text.parse_dump(broken))


def test_entities_do_not_grow() -> None:
    lines = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    bomb = f'<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa">{lines}]><m>&j;</m>'.encode()
    with pytest.raises(ValueError, match="a MediaWiki export must be XML: limit on input amplification"):
        list(text.parse_dump(bomb))


def test_the_wikipedia_sample() -> None:
    corpus = the(WIKIPEDIA_SAMPLE, text.wikipedia_sample)
    check_form(corpus)
    assert len(corpus.documents) == 106
    assert corpus.size == 5_747_271
    contents = dict(corpus.documents)
    assert contents["Anarchism"].startswith(b"{{Redirect2|Anarchist|Anarchists|")
    assert b"'''Aardvark'''" in contents["Aardvark"] or b"'''aardvark'''" in contents["Aardvark"]
    assert not [name for name, content in corpus.documents if content[:9].upper() == b"#REDIRECT"]


# Speeches, a novel, Brown -----------------------------------------------------------------------------------------


def test_the_state_of_the_union() -> None:
    corpus = the(STATE_OF_THE_UNION, text.state_of_the_union)
    check_form(corpus)
    assert len(corpus.documents) == 233
    assert corpus.documents[0].name == "1790_george_washington_n"
    assert words_of(corpus, "1863_abraham_lincoln_r")[8:13] == ["Another", "year", "of", "health", "and"]


def test_moby_dick() -> None:
    corpus = the(MOBY_DICK, text.moby_dick)
    check_form(corpus)
    assert len(corpus.documents) == 135 + 3
    assert words_of(corpus, "chapter_1")[:6] == ["CHAPTER", "1.", "Loomings.", "Call", "me", "Ishmael."]
    assert {"etymology", "extracts", "epilogue", "chapter_135"} <= {document.name for document in corpus.documents}


def test_tags_are_taken_off() -> None:
    tagged = b"\n\n\tThe/at 1-1/2/cd ``/`` //in\n\n dogs/nns ./.\n"
    assert text.without_tags(tagged, "it") == b"The 1-1/2 `` /\ndogs .\n"
    for token in (b"word", b"/tag", b"word/"):
        with pytest.raises(ValueError, match="every token of it must be word/tag; got b'"):
            text.without_tags(b"a/b " + token, "it")


WORDS = st.lists(st.lists(st.text("ab/'-.1", min_size=1), min_size=1), min_size=1)


@given(lines=WORDS)
def test_tags_of_any_words_are_taken_off(lines: list[list[str]]) -> None:
    tagged = "\n\n".join(" ".join(f"{word}/nn-tl" for word in line) for line in lines)
    assert text.without_tags(tagged.encode(), "it").decode() == "".join(" ".join(line) + "\n" for line in lines)


def test_brown() -> None:
    corpus = the(BROWN, text.brown)
    check_form(corpus)
    assert len(corpus.documents) == 500
    assert sum(len(document.content.split()) for document in corpus.documents) == 1_161_192  # `wc -w` of the files
    sentence = "The Fulton County Grand Jury said Friday an investigation of Atlanta's recent primary election produced"
    assert words_of(corpus, "ca01")[:15] == sentence.split()
