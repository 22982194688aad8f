"""Chapter 4: the card of a trained model, which says how it was made and how good it is."""

import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from minisd.checkpoints import describe_run
from minisd.data.postcards import Postcards
from minisd.device import device_name, processor
from minisd.files import read_json, replacing, write_json
from minisd.lab.precision import Way, compared
from minisd.lab.scores import Scores, as_json, scores_of
from minisd.tokenizer import Tokenizer
from minisd.training import TrainingSettings, TrainingStep


def network_record(
    state: TrainingStep,
    dataset: Any,
    settings: TrainingSettings,
    accelerator: Accelerator,
    times: dict[str, float],
) -> dict[str, Any]:
    """Return what `training.json` says of a network after the last step of its training.

    `times` are those that precision and order in memory were chosen by, {} if they were not.
    """
    run = describe_run(state.ema, dataset, settings, accelerator)
    return {
        "data": run["data"],
        "examples": run["examples"],
        "parameters": sum(p.numel() for p in state.ema.parameters()),
        "model": run["model"],
        "settings": run["settings"],
        "cost": {
            "seconds": state.log[-1]["seconds"],
            "images": settings.steps * settings.batch_size,
            "machine": machine(accelerator),
            "precision": run["precision"],
            "channels_last": run["channels_last"],
            "milliseconds": times,
            "processes": run["processes"],
        },
        "log": state.log,
    }


def tokenizer_record(tokenizer: Tokenizer, dataset: Postcards, seconds: float) -> dict[str, Any]:
    """Return what `training.json` says of a tokenizer that took so many seconds to make."""
    return {
        "data": dataset.source,
        "captions": 2 * len(dataset),  # a short one and a full one of each
        "vocab_size": tokenizer.vocab_size,
        "merges": len(tokenizer.ranks),
        "settings": asdict(tokenizer.config),
        "cost": {"seconds": round(seconds, 3), "machine": processor()},
    }


def add_scores(folder: str | Path, scores: Scores) -> None:
    """Keep scores in `training.json` and in the card of a trained model."""
    path = Path(folder) / "training.json"
    training = read_json(path)
    training["scores"] = as_json(scores_of(training) | scores)
    write_json(path, training)
    write_card(folder)


def write_card(folder: str | Path) -> None:
    """Write `card.md`, the readable form of `training.json` without the log."""
    training = read_json(Path(folder) / "training.json")
    describe = describe_training if "log" in training else describe_counting
    lines = [
        f"# {training['recipe']}",
        "",
        f"{training['summary'][0].upper()}{training['summary'][1:]}.",
        "",
        *describe(training),
        f"- made by commit: {training['commit']}",
        "",
        "## Scores",
        "",
    ]
    scores = scores_of(training)
    lines += [f"- {name}: {score}" for name, score in scores.items()] or ["Not scored yet."]
    with replacing(Path(folder) / "card.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def describe_training(training: dict[str, Any]) -> list[str]:
    """Say how a network was trained, in the lines of its card."""
    cost, settings = training["cost"], training["settings"]
    way = Way(cost["precision"], cost.get("channels_last", False))
    times = cost.get("milliseconds")  # the first cards have no times and no order in memory
    optimizer = settings.get("optimizer", "AdamW")
    model = dict(training.get("model", {}))  # the first cards did not name it
    name = model.pop("class", None)
    config = ", ".join(f"{field}={value}" for field, value in model.items())
    return [
        f"- data: {training['data']}, {training['examples']:,} training images",
        f"- recipe: `minisd train {training['recipe']} --seed {settings['seed']}"
        f" --steps {settings['steps']} --precision {way.precision}"
        f"{' --channels-last' * way.channels_last}`",
        *([f"- fastest here: {compared(way, times)}"] if times else []),
        f"- parameters: {training['parameters']:,}",
        *([f"- model: {name}({config})"] if name else []),
        f"- cost: {cost['seconds'] / 60:.1f} minutes on {cost['machine']}; "
        f"{settings['steps']:,} optimiser steps, {cost['images']:,} images seen",
        f"- optimiser: {optimizer}, learning rate {settings['learning_rate']:g}, "
        f"batch {settings['batch_size']}, moving average {settings['ema_decay']}",
        f"- last loss: {training['log'][-1]['loss']:.4f} (the whole curve is in `training.json`)",
    ]


def describe_counting(training: dict[str, Any]) -> list[str]:
    """Say how a tokenizer was made, in the lines of its card."""
    cost, settings = training["cost"], training["settings"]
    return [
        f"- data: {training['data']}, {training['captions']:,} captions",
        f"- recipe: `minisd train {training['recipe']}`",
        f"- vocabulary: {training['vocab_size']:,} tokens, {training['merges']:,} of them merges",
        f"- length: at most {settings['model_max_length']} tokens, start and end among them",
        f"- cost: {cost['seconds']:.1f} seconds on {cost['machine']}",
    ]


def machine(accelerator: Accelerator) -> str:
    """Name the machine that a run used."""
    name = device_name(accelerator.device)
    return f"{accelerator.num_processes} x {name}" if accelerator.num_processes > 1 else name


def commit() -> str:
    """Return the commit of the code that runs, or minisd's version where git cannot tell.

    "-dirty" marks a package that has changed since that commit.
    """
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return result.stdout.strip()

    try:
        if (root / ".git").exists():  # not a repository around the installed package
            dirty = git("status", "--porcelain", "--", "minisd")
            return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):  # no git, or it refuses: see safe.directory
        pass
    try:
        return f"minisd {version('minisd')}"
    except PackageNotFoundError:
        return "unknown"
