"""Save a model as a folder, and load it again: from a folder, from this package, or from the hub.

A folder holds `config.json` (the fields of the model's config) and `model.safetensors`. Folders in
diffusers' format are read as they are, and written on request.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minisd.files import read_json, replacing, writable_folder, write_json
from minisd.weights import DiffusersFormat

WEIGHTS = "model.safetensors"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")  # to open one is to run what is in it
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TERMS = {  # what to know before the download
    SD15: "It is 4.3 GB, or 2.1 GB with variant='fp16', under the CreativeML OpenRAIL-M licence "
    "(https://huggingface.co/spaces/CompVis/stable-diffusion-license).",
    "runwayml/stable-diffusion-v1-5": f"That repository is gone; its copy is {SD15}.",
}
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


SEARCHED = [CHECKPOINTS]  # where a name is looked up, the first hit wins


@contextmanager
def preferring(folder: str | Path) -> Iterator[None]:
    """Within this block, take a model from `folder` if it has one of that name."""
    SEARCHED.insert(0, Path(folder))
    try:
        yield
    finally:
        SEARCHED.pop(0)


def bundled() -> list[str]:
    """Return the names of the checkpoints that come with minisd."""
    return sorted(path.parent.name for path in CHECKPOINTS.glob("*/card.md"))


def download_folder() -> Path:
    """Return `data/downloads` in the repository, or a cache folder where minisd is installed."""
    if CHECKPOINTS.parent.name == "data":
        return CHECKPOINTS.parent / "downloads"
    return Path.home() / ".cache" / "minisd"


def copies() -> list[Path]:
    """Return where a copy of a hub's folder is looked for, under its id: `folder/owner/model`."""
    return [*map(Path, filter(None, [os.environ.get("MINISD_DATA")])), download_folder()]


def locate(name: str | Path, subfolder: str = "", patterns: tuple[str, ...] = ("*",)) -> Path:
    """Return the local folder of `name`: a folder, a bundled checkpoint, or a hub id.

    Only a hub id ("owner/model") is downloaded, unless a copy of its folder lies in `copies()` or
    in the hub's cache, and of it only the files that match `patterns`. Raises ValueError if there
    is no such thing, or no network to fetch it.
    """
    path = Path(name).expanduser()
    for folder in (path, *(known / name for known in SEARCHED + copies())):
        if folder.is_dir():
            folder = folder / subfolder
            if not folder.is_dir():
                raise ValueError(f"{name} has no subfolder {subfolder!r}")
            return folder
    if path.is_file():
        why = " and a pickle can run code when it is opened" if path.suffix in PICKLES else ""
        raise ValueError(
            f"{name} is a single file{why}: give a folder in diffusers' format, with safetensors"
        )
    owner, _, model = str(name).partition("/")
    if not owner.strip("._~-") or not model or "/" in model:
        raise ValueError(
            f"unknown model {str(name)!r}: neither a folder nor a bundled checkpoint "
            f"({', '.join(bundled()) or 'none'}) nor a hub id like owner/model"
        )
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    prefix = f"{subfolder}/" if subfolder else ""
    try:
        root = snapshot_download(str(name), allow_patterns=[prefix + p for p in patterns])
    except Exception as error:  # the hub's client raises some twenty unrelated types
        reason, terms = " ".join(str(error).split()).removesuffix("."), TERMS.get(str(name))
        raise ValueError(
            f"cannot download {name} from the hub: {reason}. {f'{terms} ' if terms else ''}Without "
            f"a network, put a copy of its folder in {copies()[0] / name}, or anywhere, and give "
            "its path."
        ) from error
    if not (Path(root) / subfolder).is_dir():
        raise ValueError(f"{name}, as it is in {root}, has no subfolder {subfolder!r}")
    return Path(root) / subfolder


def build_config(config_class: type, values: dict[str, Any], source: str | Path) -> Any:
    """Return `config_class(**values)`; what does not fit raises ValueError that names `source`."""
    known = {field.name for field in fields(config_class)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(
            f"{source}: unknown field {', '.join(map(repr, unknown))}; "
            f"{config_class.__name__} has {', '.join(sorted(known))}"
        )
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:  # a number where a list belongs, say
        raise ValueError(f"{source}: {error}") from error


def read_tensors(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Read a safetensors file; a missing, truncated or foreign one raises ValueError.

    The tensors are the file itself, mapped into memory: each page is read when it is first needed.
    What has another `dtype` is converted tensor by tensor, so that there are never two copies.
    """
    try:
        tensors = load_file(path)
        for key in tensors:
            if dtype not in (None, tensors[key].dtype):
                with safe_open(path, "pt") as file:  # mapped for this one, and given back at once
                    tensors[key] = file.get_tensor(key).to(dtype)
        return tensors
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist{instead_of(path)}") from None
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}); fetch or train it again"
        ) from None


def instead_of(path: Path) -> str:
    """Say which other files of weights lie where `path` should be."""
    found = sorted(file.name for file in path.parent.glob("*"))
    safe = [name for name in found if name.endswith(".safetensors")]
    pickles = [name for name in found if name.endswith(PICKLES)]
    said = f"; there is {', '.join(safe)}: see `variant`" if safe else ""
    if pickles:
        said += f"; {', '.join(pickles)} is a pickle, which can run code when it is opened"
    return said


class Unfilled(TorchFunctionMode):
    """Leave new weights unfilled on the meta device: torch would load 800 modules to fill them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


class Pretrained:
    """Adds `from_pretrained` and `save_pretrained` to a model built from one config dataclass."""

    config_class: ClassVar[type]
    diffusers_format: ClassVar[DiffusersFormat | None] = None

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
        files = WEIGHTS, foreign.file if foreign else WEIGHTS  # minisd's, theirs
        if variant:
            files = [file.replace(".safetensors", f".{variant}.safetensors") for file in files]
        folder = locate(name, subfolder, ("config.json", *files))
        raw = read_json(folder / "config.json")

        # diffusers names its class, transformers a list of one; minisd's own files neither
        class_name = raw.get("_class_name") or (raw.get("architectures") or [None])[0]
        is_foreign = class_name is not None
        if is_foreign:
            if foreign is None or class_name not in foreign.class_names:
                raise ValueError(f"{folder} holds a {class_name}, not a {cls.__name__}")
            try:
                raw = foreign.read_config(raw)
            except KeyError as error:
                raise ValueError(f"{folder / 'config.json'} has no {error}") from None
            except ValueError as error:
                raise ValueError(f"{folder / 'config.json'}: {error}") from None
        config = build_config(cls.config_class, raw, folder / "config.json")
        path = folder / files[is_foreign]
        tensors = read_tensors(path, torch_dtype)

        with torch.device("meta"), Unfilled():  # shapes without memory: the file brings the numbers
            model = cls(config)
        names = {key: key for key in model.state_dict()}
        if is_foreign:
            names, tensors = model.diffusers_names(), foreign.upgrade(tensors)
        check_fit(model, names, tensors, path)
        model.load_state_dict({ours: tensors[name] for ours, name in names.items()}, assign=True)
        return model.eval()

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, format: str = "minisd"
    ) -> None:
        """Write `config.json` and the weights, each whole or not at all.

        `dtype` changes the precision of what is stored, `format="diffusers"` the names. Raises
        ValueError for an unknown format or a folder that cannot be written.
        """
        check_format(format)
        if format == "diffusers" and self.diffusers_format is None:
            raise ValueError(f"diffusers has no counterpart of {type(self).__name__}")
        tensors = {key: t.detach().to(dtype=dtype).cpu() for key, t in self.state_dict().items()}
        config, file = asdict(self.config), WEIGHTS
        if format == "diffusers":
            names = self.diffusers_names()
            tensors = {names[key]: tensor for key, tensor in tensors.items()}
            config = self.diffusers_format.write_config(self.config)
            file = self.diffusers_format.file
        folder = writable_folder(folder)
        with replacing(folder / file) as temporary:
            tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
            save_file(tensors, temporary, metadata={"format": "pt"})  # transformers asks for it
        write_json(folder / "config.json", config)

    def diffusers_names(self) -> dict[str, str]:
        """Return minisd's name -> diffusers' name for every tensor of this model."""
        return self.diffusers_format.key_map(self.config, self.state_dict())


def check_format(format: str) -> None:
    """Raise ValueError unless `format` is one in which models are saved."""
    if format not in ("minisd", "diffusers"):
        raise ValueError(f"format must be 'minisd' or 'diffusers', got {format!r}")


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
