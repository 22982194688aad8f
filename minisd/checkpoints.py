"""Chapter 4: a run on disk: its weights, its average, its optimiser, and which run it is."""

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minisd.files import replacing
from minisd.tensors import read_tensors

FORMAT = 2  # the first did not say which run a checkpoint belongs to


def describe_run(
    model: nn.Module,
    dataset: Any,  # a Dataset with a length, of which torch's type says nothing
    settings: Any,
    accelerator: Accelerator,
    recipe: str | None = None,
) -> dict[str, Any]:
    """Return all that decides how a run ends, as JSON would give it back.

    The settings are a dataclass, and so is the model's `config`, if it has one.
    """
    config = getattr(model, "config", None)
    fields = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
    run = {
        "format": FORMAT,
        "recipe": recipe,
        "data": getattr(dataset, "source", type(dataset).__name__),
        "examples": len(dataset),
        "model": {"class": type(model).__name__, **fields},
        "settings": asdict(settings),
        "precision": accelerator.mixed_precision,
        "channels_last": channels_last(model),  # other orders of a sum round otherwise
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,  # each draws other numbers from one seed
    }
    return json.loads(json.dumps(run, default=str))


def channels_last(model: nn.Module) -> bool:
    """Whether any weights of the model lie in memory with the channels last.

    Those of 1x1 are in both orders at once and do not count.
    """
    return any(
        p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in model.parameters()
    )


def differences(saved: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Say for each field in which two descriptions of a run differ what both have."""
    found = []
    for name in wanted | saved:
        ours, theirs = wanted.get(name), saved.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found += differences(theirs, ours, f"{prefix}{name}.")
        elif ours != theirs:
            found.append(f"{prefix}{name} is {theirs!r} in the checkpoint, {ours!r} in this run")
    return found


def save_checkpoint(
    path: Path,
    run: dict[str, Any],
    log: list[dict[str, float]],
    model: nn.Module,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
    timings: dict[str, float] | None = None,
) -> None:
    """Write weights, average, optimiser state and log into one file, whole or not at all.

    `run` is what `describe_run` returns; the `scaler` is that of fp16. Whatever the order of the
    weights in memory, in the file the channels come first.
    """
    tensors = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    tensors |= {f"ema.{key}": tensor for key, tensor in ema.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in state.items()}
    memories = set()
    for key, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        tied = memory in memories  # safetensors wants memory of its own for each tensor
        tensor = tensor.detach().contiguous()
        tensors[key] = tensor.clone() if tied else tensor
        memories.add(memory)
    parts = {"run": run, "log": log, "timings": timings or {}}
    parts["scaler"] = scaler.state_dict() if scaler else None
    with replacing(path) as temporary:
        save_file(tensors, temporary, {key: json.dumps(part) for key, part in parts.items()})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a checkpoint, and what it says beside: run, log, timings, scaler.

    Raises ValueError if the file is damaged or no checkpoint.
    """
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if "run" not in metadata:
        what = "a checkpoint of an older version" if "settings" in metadata else "no checkpoint"
        raise ValueError(f"{path} is {what}, which does not say how to resume: use another folder")
    facts = {"timings": {}} | {key: json.loads(part) for key, part in metadata.items()}
    facts["run"].setdefault("channels_last", False)  # as all were at first
    return tensors, facts


def load_checkpoint(
    path: Path,
    run: dict[str, Any],
    model: nn.Module,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> list[dict[str, float]]:
    """Restore what `save_checkpoint` wrote and return its log, whose last row is its step.

    Raises ValueError if the file is damaged or no checkpoint, or if its run differs from `run`: it
    says in what.
    """
    tensors, facts = read_checkpoint(path)
    found = differences(facts["run"], run)
    if found:
        raise ValueError(
            f"{path} belongs to another run: {'; '.join(found)}. Resume with what the checkpoint "
            "has, or use another folder"
        )
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    try:
        model.load_state_dict(parts["model"])
        ema.load_state_dict(parts["ema"])
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to another model: {error}") from None
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in parts["optimizer"].items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for p, kept in optimizer.state.items():  # in the order in memory that the weights have
        kept |= {key: torch.empty_like(p).copy_(t) for key, t in kept.items() if t.ndim == 4}
    if scaler is not None:
        scaler.load_state_dict(facts["scaler"])
    return facts["log"]
