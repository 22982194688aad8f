"""Chapter 13: save a model as a folder; load it from a folder, from this package, or from the hub.

A folder holds `config.json` (the fields of the model's config) and `model.safetensors`. Folders in
diffusers' format are read as they are, and written on request.
"""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from glob import escape
from os import environ
from os.path import isdir, isfile
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minisd.configs import build_config, class_name
from minisd.files import (
    expand,
    inside,
    is_plain_name,
    read_json,
    replacing,
    writable_folder,
    write_json,
)
from minisd.tensors import PICKLES, check_fit, read_index, read_shards, read_tensors, weight_files
from minisd.weights import DiffusersFormat

WEIGHTS = "model.safetensors"
# A folder with one of these holds a model, or a part of one.
CONFIGS = ("config.json", "model_index.json", "scheduler_config.json", "tokenizer_config.json")
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TERMS = {  # what to know before the download
    SD15: "It is 4.3 GB, or 2.1 GB with variant='fp16', under the CreativeML OpenRAIL-M licence "
    "(https://huggingface.co/spaces/CompVis/stable-diffusion-license).",
    "runwayml/stable-diffusion-v1-5": f"That repository is gone; its copy is {SD15}.",
}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)  # owner/model
CHECKPOINTS = next(  # beside the modules once installed; in data/ in the repository
    (
        folder
        for folder in (
            Path(__file__).parent / "checkpoints",
            Path(__file__).parents[1] / "data" / "checkpoints",
        )
        if folder.is_dir()
    ),
    Path(__file__).parents[1] / "data" / "checkpoints",
)

_preferred: ContextVar[tuple[Path, ...]] = ContextVar("preferred", default=())


@contextmanager
def preferring(folder: str | Path) -> Iterator[None]:
    """Within this block, take a model from `folder` if it has one of that name.

    Only for this thread; of nested blocks, the inner one is searched first.
    """
    token = _preferred.set((expand(folder), *_preferred.get()))
    try:
        yield
    finally:
        _preferred.reset(token)


def bundled() -> list[str]:
    """Return the names of the checkpoints that come with minisd."""
    return sorted(path.parent.name for path in CHECKPOINTS.glob("*/card.md"))


def download_folder() -> Path:
    """Return `data/downloads` in the repository, or a cache folder where minisd is installed."""
    if CHECKPOINTS.parent.name == "data":
        return CHECKPOINTS.parent / "downloads"
    try:
        return Path.home() / ".cache" / "minisd"
    except RuntimeError:  # no home folder, as in some containers
        return Path(tempfile.gettempdir()) / "minisd"


def copies() -> list[Path]:
    """Return where a copy of a hub's folder is looked for, under its id: `folder/owner/model`."""
    own = environ.get("MINISD_DATA")
    return [*([expand(own)] if own else []), download_folder()]


def locate(name: str | Path, subfolder: str = "", files: tuple[str, ...] = ()) -> Path:
    """Return the local folder of `name`: a folder, a bundled checkpoint, or a hub id.

    A folder that holds no model does not hide a bundled checkpoint of its name. Only a hub id
    ("owner/model") is downloaded, unless a copy of its folder lies in `copies()` or in the hub's
    cache, and of it only `files`: without any, nothing is downloaded. Raises ValueError if there is
    no such thing, a `subfolder` outside the folder, or no network.
    """
    text = str(name)
    if not text:
        raise ValueError("the name of the model is empty: give a folder, a name or a hub id")
    path, is_hub_id = expand(name), HUB_ID.fullmatch(text) is not None
    candidates = [path]
    if is_plain_name(text):
        candidates += [folder / text for folder in (*_preferred.get(), CHECKPOINTS)]
    elif is_hub_id:
        candidates += [folder / text for folder in copies()]
    found = [folder for folder in candidates if isdir(folder)]
    if found:
        folder = next(
            (f for f in found if _holds_model(f) or _holds_model(f / subfolder)), found[0]
        )
        if not isdir(inside(folder, subfolder)):
            raise ValueError(f"{name} has no subfolder {subfolder!r}")
        return folder / subfolder
    if isfile(path):
        why = " and a pickle can run code when it is opened" if path.suffix in PICKLES else ""
        raise ValueError(
            f"{name} is a single file{why}: give a folder in diffusers' format, with safetensors"
        )
    if not is_hub_id:
        raise ValueError(
            f"unknown model {text!r}: neither a folder nor a bundled checkpoint "
            f"({', '.join(bundled()) or 'none'}) nor a hub id like owner/model"
        )
    if not files:
        raise ValueError(
            f"{name} is not on this machine, and this is no occasion to download it: put a copy of "
            f"its folder in {copies()[0] / text}, or anywhere, and give its path"
        )
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    prefix = f"{subfolder}/" if subfolder else ""
    try:
        root = Path(snapshot_download(text, allow_patterns=[escape(prefix + f) for f in files]))
    except Exception as error:  # the hub's client raises some twenty unrelated types
        reason, terms = " ".join(str(error).split()).removesuffix("."), TERMS.get(text)
        raise ValueError(
            f"cannot download {name} from the hub: {reason}. {f'{terms} ' if terms else ''}Without "
            f"a network, put a copy of its folder in {copies()[0] / text}, or anywhere, and give "
            "its path."
        ) from error
    if not isdir(inside(root, subfolder)):
        raise ValueError(f"{name}, as it is in {root}, has no subfolder {subfolder!r}")
    return root / subfolder


def locate_companion(name: object, folder: Path) -> Path:
    """Return the folder of the model `name` that a file in `folder` refers to.

    It lies beside `folder` or is bundled: a file may come from a stranger, and strangers choose
    neither downloads nor paths. Raises ValueError for any other.
    """
    if is_plain_name(name):
        for known in (*_preferred.get(), folder.resolve().parent, CHECKPOINTS):
            if _holds_model(known / str(name)):
                return known / str(name)
    raise ValueError(
        f"{folder} refers to a model {name!r:.80}: it must be bundled ({', '.join(bundled())}) or "
        f"lie beside that folder, as {folder.resolve().parent / 'NAME'}"
    )


def _holds_model(folder: Path) -> bool:
    return any(isfile(folder / file) for file in CONFIGS)


class Unfilled(TorchFunctionMode):
    """Leave new weights unfilled on the meta device: torch would load 800 modules to fill them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        if function in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


class Pretrained(nn.Module):
    """Adds `from_pretrained` and `save_pretrained` to a model built from one config dataclass."""

    config_class: ClassVar[type]
    diffusers_format: ClassVar[DiffusersFormat | None] = None
    config: Any  # of the class config_class

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        subfolder: str = "",
        torch_dtype: torch.dtype = torch.float32,
        variant: str | None = None,
    ) -> Self:
        """Load a model from a folder, by the name of a bundled checkpoint, or by its hub id.

        `variant="fp16"` picks the half-precision files of a diffusers folder. The model is on the
        CPU and in evaluation mode. Raises ValueError if anything is missing or does not fit.
        """
        foreign = cls.diffusers_format
        ours, theirs = (
            weight_files(file, variant)  # the whole, and the index of its shards
            for file in (WEIGHTS, foreign.file if foreign else WEIGHTS)
        )
        folder = locate(name, subfolder, ("config.json", *ours, *theirs))
        source = folder / "config.json"
        raw = read_json(source)
        kind = class_name(raw, source)
        if kind is not None:
            if foreign is None or kind not in foreign.class_names:
                raise ValueError(f"{folder} holds a {kind}, not a {cls.__name__}")
            try:
                raw = foreign.read_config(raw)
            except KeyError as error:
                raise ValueError(f"{source} has no {error}") from None
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from None
        config = build_config(cls.config_class, raw, source)

        whole, index = ours if kind is None else theirs
        path = folder / whole
        if path.is_file() or not (folder / index).is_file():
            tensors = read_tensors(path, torch_dtype)
        else:
            path = folder / index
            shards = read_index(path)
            folder = locate(name, subfolder, tuple(sorted(set(shards.values()))))
            tensors = read_shards(folder, shards, torch_dtype)

        try:
            with torch.device("meta"), Unfilled():  # shapes without memory, and without numbers
                model = cls(config)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{source}: there is no such {cls.__name__}: {error}") from error
        names = {key: key for key in model.state_dict()}
        if foreign is not None and kind is not None:
            names, tensors = model.diffusers_names(), foreign.upgrade(tensors)
        check_fit(model, names, tensors, path)
        model.load_state_dict({key: tensors[name] for key, name in names.items()}, assign=True)
        return model.eval()

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, format: str = "minisd"
    ) -> None:
        """Write `config.json` and the weights, each whole or not at all.

        `dtype` changes the precision of what is stored, `format="diffusers"` the names. Raises
        ValueError for an unknown format or a folder that cannot be written.
        """
        check_format(format)
        foreign = self.diffusers_format if format == "diffusers" else None
        if format == "diffusers" and foreign is None:
            raise ValueError(f"diffusers has no counterpart of {type(self).__name__}")
        tensors = {key: t.detach().to(dtype=dtype).cpu() for key, t in self.state_dict().items()}
        config, file = asdict(self.config), WEIGHTS
        if foreign is not None:
            names = self.diffusers_names()
            tensors = {names[key]: tensor for key, tensor in tensors.items()}
            config, file = foreign.write_config(self.config), foreign.file
        folder = writable_folder(folder)
        with replacing(folder / file) as temporary:
            tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
            save_file(tensors, temporary, metadata={"format": "pt"})  # transformers asks for it
        write_json(folder / "config.json", config)

    def diffusers_names(self) -> dict[str, str]:
        """Return minisd's name -> diffusers' name for every tensor of this model."""
        assert self.diffusers_format is not None
        return self.diffusers_format.key_map(self.config, self.state_dict())


def check_format(format: str) -> None:
    """Raise ValueError unless `format` is one in which models are saved."""
    if format not in ("minisd", "diffusers"):
        raise ValueError(f"format must be 'minisd' or 'diffusers', got {format!r}")
