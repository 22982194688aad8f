"""Read files with care, and write them so that they are there in full or not at all."""

import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MAX_TEXT_BYTES = 64 * 2**20  # CLIP's vocabulary has 1 MB, the largest tokenizers have 35
STALE_SECONDS = 3600  # a temporary file that has not grown for so long has lost its writer


def expand(path: str | Path) -> Path:
    """Return `path` with `~` replaced by the home folder; raises ValueError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such home folder; write the path in full") from None


def inside(folder: Path, name: str) -> Path:
    """Return `folder / name`; raises ValueError if that lies outside, also by a symbolic link."""
    path = folder / name
    try:
        within = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a link to itself, a null byte
        within = False
    if not within:
        raise ValueError(f"{name!r} leads out of {folder}; name something in that folder")
    return path


def is_plain_name(name: object) -> bool:
    """Whether `name` is text that names a file or folder without saying where it is."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\:\0")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` only if the block succeeds.

    The temporary file lies in the same folder and keeps the suffix, by which some writers (PIL,
    numpy) choose the format. Each writer has its own: of two at the same time, the last one wins.
    Raises OSError that names `path` if it cannot be written, because the disk is full for example.
    """
    path = expand(path)
    prefix = f".{path.name[:20]}.partial-"
    temporary = path.with_name(f"{prefix}{secrets.token_hex(8)}{path.suffix[:16]}")
    try:
        remove_stale(path.parent, prefix)
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode  # as the user's umask has it
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # some writers are stricter
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        about = getattr(error, "filename", None) or temporary
        if str(about) not in (str(temporary), str(path.parent)):
            raise  # about another file
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot write {path}: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_stale(folder: Path, prefix: str) -> None:
    """Remove the temporary files, with names that begin so, of processes that were killed."""
    for file in folder.iterdir():
        if file.name.startswith(prefix):
            with suppress(OSError):  # another process may be faster
                if time.time() - file.stat().st_mtime > STALE_SECONDS:
                    file.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as readable JSON, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_text(path: str | Path, encoding: str = "utf-8", limit: int = MAX_TEXT_BYTES) -> str:
    """Read UTF-8; raises ValueError that names a file that is missing, broken or beyond `limit`."""
    path = expand(path)
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"{path} is larger than {limit:,} bytes: it cannot be what it should")
        return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid UTF-8: {error}") from None


def parse_json(text: str, source: object) -> dict[str, Any]:
    """Return the JSON object in `text`; raises ValueError that names `source`.

    Neither NaN, which is no JSON, nor brackets beyond Python's depth of recursion are read.
    """

    def constant(name: str) -> float:
        if name == "NaN":
            raise ValueError("NaN is no number")
        return float(name)  # diffusers writes -Infinity into the files of its schedulers

    try:
        value = json.loads(text, parse_constant=constant)
    except RecursionError:
        raise ValueError(f"{source} is not valid JSON: too many brackets in each other") from None
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{source} must hold one JSON object, not {type(value).__name__}")
    return value


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; a missing or broken file, or other JSON, raises ValueError with its name.

    All files of minisd, of diffusers and of transformers hold one object each.
    """
    return parse_json(read_text(path), path)


def writable_folder(path: str | Path) -> Path:
    """Create `path` if need be; raises ValueError unless a file can be written there."""
    path = expand(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write to {path}: {error.strerror}; choose another folder"
        ) from None
    return path
