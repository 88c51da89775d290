"""Files that are whole or absent, and digests of directories."""

import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jattn.runs.files import tree_digest, write_whole


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.binary(), min_size=1, max_size=4))
def test_a_file_holds_what_was_written_last(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("files") / "file"
    for content in contents:
        write_whole(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, file_size_limit):
    path = tmp_path / "file"
    write_whole(path, "old")
    with file_size_limit(100), pytest.raises(OSError, match="File too large"):
        write_whole(path, b"n" * 1000)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "file"
    contents = [letter * 50_000 for letter in "abc"]
    write_whole(path, contents[0])
    done = threading.Event()
    seen = set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for n in range(60):
            write_whole(path, contents[n % 3])
    finally:
        done.set()
        reader.join()
    assert seen
    assert seen <= set(contents)


FILES = st.dictionaries(
    st.sampled_from(["a", "b", "ab", "sub/a", "sub/b"]), st.sampled_from([b"", b"a", b"b", b"ab"]), max_size=3
)


@settings(deadline=None)
@given(FILES, FILES)
@example({"a": b"b"}, {"ab": b""})  # alike if merely strung together
@example({"a": b"ab"}, {"a": b"a", "b": b""})
def test_a_digest_tells_any_two_directories_apart(tmp_path_factory, one, other):
    digests = []
    for files in (one, other):
        directory = tmp_path_factory.mktemp("digest")
        for name, content in files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(content)
        digests.append(tree_digest(directory))
    assert (digests[0] == digests[1]) == (one == other)
