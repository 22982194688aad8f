import errno
import json
import os
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from minisd import UNet, UNetConfig, files
from minisd.files import (
    expand,
    inside,
    is_plain_name,
    read_json,
    read_text,
    replacing,
    writable_folder,
    write_json,
)


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


# Several writers, and disks that are full.


def test_two_writers_at_the_same_time_write_two_files(tmp_path):
    path = tmp_path / "a.json"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("from the first, which is longer")
        second.write_text("from the second")
    assert path.read_text() == "from the first, which is longer"  # it was the last to finish
    assert os.listdir(tmp_path) == ["a.json"]


def test_many_writers_at_the_same_time_leave_one_whole_file(tmp_path):
    values = [{"writer": i, "rows": [i] * 1000} for i in range(8)]

    def write(value):
        for _ in range(20):
            write_json(tmp_path / "a.json", value)

    threads = [threading.Thread(target=write, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "a.json").exists():
            assert read_json(tmp_path / "a.json") in values
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_process_left_is_removed_later(tmp_path):
    with pytest.raises(AttributeError):
        with replacing(tmp_path / "a.bin") as temporary:
            name = temporary.name
            temporary.write_text("half")
            raise AttributeError
    left, fresh, foreign = tmp_path / name, tmp_path / f"{name[:-6]}00.bin", tmp_path / ".mine"
    old = time.time() - files.STALE_SECONDS - 1
    for file in (left, fresh, foreign):
        file.touch()
    for file in (left, foreign):
        os.utime(file, (old, old))
    with replacing(tmp_path / "a.bin") as temporary:
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted([fresh.name, ".mine", "a.bin"])


@pytest.mark.parametrize("stem", ["n" * 251, "é" * 125, "日" * 83, "n" * 240 + ".tar"])
def test_the_longest_name_can_be_written(tmp_path, stem):
    """255 bytes are allowed; the temporary name must not need more."""
    name = f"{stem}.png"
    assert 245 <= len(name.encode()) <= 255
    with replacing(tmp_path / name) as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("here")
    assert os.listdir(tmp_path) == [name]


def test_a_suffix_may_be_all_there_is(tmp_path):
    name = "a." + "x" * 253
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("here")
    assert os.listdir(tmp_path) == [name]


def test_a_full_disk_is_an_os_error_with_the_name_of_the_file(tmp_path):
    """safetensors' own error is no OSError. A limit on the size of files stands for the disk."""
    resource = pytest.importorskip("resource", reason="limits of Unix")
    model, path = UNet(UNetConfig()), tmp_path / "model" / "model.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (
        lambda: model.save_pretrained(path.parent),
        lambda: write_json(path, "x" * 200_000),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(OSError) as error:
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert str(error.value).startswith(f"cannot write {path}: ")
        assert "too large" in str(error.value).lower()
    assert os.listdir(tmp_path / "model") == []


def test_errors_about_other_files_keep_their_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="input.png"):
        with replacing(tmp_path / "a.png"):
            open(tmp_path / "input.png")
    with pytest.raises(OSError, match="cannot write .*a.png: cannot write mode RGBA as JPEG"):
        with replacing(tmp_path / "a.png"):
            raise OSError("cannot write mode RGBA as JPEG")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_as_the_umask_gives_them(tmp_path, umask):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.safetensors") as temporary:
            save_file({"a": torch.zeros(2)}, temporary)
        (tmp_path / "ordinary").touch()
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode for name in ("a.safetensors", "ordinary")]
    assert modes[0] == modes[1]


def test_a_missing_folder_and_a_folder_in_the_place_of_the_file(tmp_path):
    with pytest.raises(OSError, match="cannot write .*nowhere/a.json"):
        write_json(tmp_path / "nowhere" / "a.json", {})
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match="cannot write .*a.json"):
        write_json(tmp_path / "a.json", {})
    assert os.listdir(tmp_path) == ["a.json"]


# JSON of strangers.


@pytest.mark.parametrize(
    "content",
    ["[" * 10**5, '{"a":' * 10**5, '{"a": NaN}', '{"a": 1' + "0" * 5000 + "}", "\ufeff{}", "{}{}"],
    ids=["lists", "objects", "NaN", "digits", "mark", "two"],
)
def test_json_that_json_would_not_allow_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="a.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_minus_infinity_is_read_for_it_stands_in_files_of_diffusers(tmp_path):
    (tmp_path / "a.json").write_text('{"lambda_min_clipped": -Infinity}')
    assert read_json(tmp_path / "a.json") == {"lambda_min_clipped": -float("inf")}


def test_a_file_of_absurd_size_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files.read_text, "__defaults__", ("utf-8", 1000))
    (tmp_path / "a.json").write_text(json.dumps({"a": "x" * 2000}))
    with pytest.raises(ValueError, match="a.json is larger than 1,000 bytes"):
        read_json(tmp_path / "a.json")
    with open(tmp_path / "sparse.json", "wb") as file:
        file.truncate(2**40)  # a terabyte that takes no room
    with pytest.raises(ValueError, match="sparse.json is larger"):
        read_json(tmp_path / "sparse.json")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_text(tmp_path)


# Paths.


def test_the_home_folder_is_expanded_wherever_something_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expand("~/a") == tmp_path / "a" and str(expand("a~")) == "a~"
    assert writable_folder("~/b") == tmp_path / "b"
    write_json("~/b/c.json", {})
    assert read_json("~/b/c.json") == {}
    assert os.listdir(tmp_path) == ["b"]


def test_an_unknown_home_folder_raises():
    for function in (expand, writable_folder, read_json):
        with pytest.raises(ValueError, match="~no-such-user-here/x"):
            function("~no-such-user-here/x")


def test_a_name_stays_inside_its_folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "more").mkdir(parents=True)
    (tmp_path / "folder-too").mkdir()
    (folder / "link").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "near").symlink_to(folder / "more")
    for name in ("a", "more/a", "more/../a", "", "near/a", "..."):
        assert inside(folder, name) == folder / name
    for name in ("..", "../folder-too/a", "/etc/passwd", "link", "link/a", "a\0b", "more/../../a"):
        with pytest.raises(ValueError, match="leads out of"):
            inside(folder, name)


def test_plain_names():
    assert all(map(is_plain_name, ("a", "a.b", "...", "~", "model-00001-of-00002.safetensors")))
    for name in ("", ".", "..", "a/b", "/a", "a\\b", "c:a", "a\0", None, 3, ["a"]):
        assert not is_plain_name(name), name
