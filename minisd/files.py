"""Files that are either there in full or not there at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` only if the block succeeds.

    The temporary file keeps the suffix, so that writers which look at it (PIL, numpy) behave. What
    a killed process left of one is overwritten by the next.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; some writers are stricter
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as readable JSON, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_text(path: str | Path) -> str:
    """Read UTF-8; a missing or broken file raises ValueError that names it."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid UTF-8: {error}") from None


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; a missing or broken file, or other JSON, raises ValueError with its name.

    All files of minisd, of diffusers and of transformers hold one object each.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold one JSON object, not {type(value).__name__}")
    return value


def writable_folder(path: str | Path) -> Path:
    """Create `path` if need be; raise ValueError unless a file can be written there."""
    path = Path(path)
    probe = path / f".probe.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"cannot write to {path}: {error.strerror}; choose another folder"
        ) from None
    return path
