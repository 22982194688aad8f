"""Chapter 13: read files of weights, in one piece or in shards, with care and without a copy."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from minisd.files import is_plain_name, read_json

PICKLES = (".bin", ".ckpt", ".pt", ".pth")  # to open one is to run what is in it
MAX_HEADER_BYTES = 16 * 2**20  # v1.5's U-Net needs 0.1 MB to say what is in its file


def read_tensors(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; a missing, truncated or foreign one raises ValueError.

    The tensors are the file itself, mapped into memory: each page is read when it is first needed.
    What has another `dtype` is read and converted tensor by tensor: there are never two copies.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")  # of the header, which comes next
            if length > MAX_HEADER_BYTES:
                raise SafetensorError(f"its header would have {length:,} bytes")
            header = file.read(length)
            tensors, places = load_file(path), json.loads(header)
            others = {key: t for key, t in tensors.items() if dtype not in (None, t.dtype)}
            largest = max((tensor.nbytes for tensor in others.values()), default=0)
            buffer = torch.empty(largest, dtype=torch.uint8)
            for key, like in others.items():
                file.seek(8 + length + places[key]["data_offsets"][0])
                read = buffer[: like.nbytes]
                file.readinto(read.numpy().data)
                tensors[key] = read.view(like.dtype).view(like.shape).to(dtype)
        return tensors
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist{instead_of(path)}") from None
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}); fetch or train it again"
        ) from None


def weight_files(file: str, variant: str | None) -> tuple[str, str]:
    """Return the name of a file of weights in a variant, and that of the index of its shards."""
    ending = f".{variant}" if variant else ""
    whole = file.replace(".safetensors", f"{ending}.safetensors")
    return whole, f"{file}.index{ending}.json"


def read_index(path: Path) -> dict[str, str]:
    """Return tensor -> shard, as an index of shards says; the shards lie beside it.

    Raises ValueError for an index that is missing or broken, or leads to another folder.
    """
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{path} must have a weight_map: the shard of each tensor")
    for shard in shards.values():
        if not is_plain_name(shard) or not shard.endswith(".safetensors"):
            raise ValueError(
                f"{path}: a shard must be a .safetensors file in the same folder, got {shard!r:.80}"
            )
    return shards


def read_shards(
    folder: Path, shards: dict[str, str], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Read the tensors of all shards; raises ValueError for one that is not where it should be."""
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        for key, tensor in read_tensors(folder / shard, dtype).items():
            if shards.get(key) != shard:
                raise ValueError(f"{folder / shard} holds {key}, which the index places elsewhere")
            tensors[key] = tensor
    return tensors


def instead_of(path: Path) -> str:
    """Say which other files of weights lie where `path` should be."""
    found = sorted(file.name for file in path.parent.glob("*"))
    safe = [name for name in found if name.endswith(".safetensors")]
    pickles = [name for name in found if name.endswith(PICKLES)]
    said = f"; there is {', '.join(safe)}: see `variant`" if safe else ""
    if pickles:
        said += f"; {', '.join(pickles)} is a pickle, which can run code when it is opened"
    return said


def check_fit(
    model: nn.Module, names: dict[str, str], tensors: dict[str, Tensor], source: str | Path
) -> None:
    """Raise ValueError that names the first tensors which are missing, foreign or mis-shaped.

    `names` says what the model's tensors are called in the file.
    """
    wanted = {names[key]: tuple(t.shape) for key, t in model.state_dict().items()}
    given = {key: tuple(t.shape) for key, t in tensors.items()}
    problems = (
        [f"missing {key}" for key in wanted.keys() - given.keys()]
        + [f"unexpected {key}" for key in given.keys() - wanted.keys()]
        + [
            f"{key} is {given[key]}, not {wanted[key]}"
            for key in wanted.keys() & given.keys()
            if wanted[key] != given[key]
        ]
    )
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        first = "; ".join(sorted(problems)[:3])
        raise ValueError(f"{source} does not fit the model: {first}{more}")
