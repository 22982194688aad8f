import errno
import os

import pytest

from minisd.files import read_json, read_text, replacing, writable_folder, write_json


def test_replacing_puts_the_whole_file_in_place(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"  # until the block is left
        assert temporary.suffix == ".json" and temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(type(error)):
        with replacing(path) as temporary:
            temporary.write_text("half a fi")
            raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_replacing_gives_the_mode_of_an_ordinary_file(tmp_path):
    """safetensors writes files that only their owner may read; others should read them too."""
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    with replacing(tmp_path / "a.bin") as temporary:
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "a.bin").stat().st_mode == ordinary.stat().st_mode


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": {"c": "é"}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_write_json_of_what_is_no_json_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[1]", b"null", b"\xff\xfe", None])
def test_read_json_names_the_broken_file(tmp_path, content):
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json"):
        read_json(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_read_text_names_the_broken_file(tmp_path, content):
    path = tmp_path / "broken.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.txt"):
        read_text(path)


def test_read_text_reads_every_letter(tmp_path):
    (tmp_path / "a.txt").write_bytes("é日😀\n".encode())
    assert read_text(tmp_path / "a.txt") == "é日😀\n"


def test_writable_folder_is_made_with_its_parents(tmp_path):
    folder = writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir() and os.listdir(folder) == []
    assert writable_folder(folder) == folder


def test_folder_below_a_file_raises(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(ValueError, match="cannot write to .*file"):
            writable_folder(path)
    assert os.listdir(tmp_path) == ["file"]
