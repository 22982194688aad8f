"""Chapter 4: the card of a trained model, which says how it was made and how good it is."""

import subprocess
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from minisd.device import device_name
from minisd.files import read_json, replacing, write_json
from minisd.lab.scores import Scores, as_json, scores_of


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
    """Say how a network was trained."""
    cost, settings = training["cost"], training["settings"]
    optimizer = settings.get("optimizer", "AdamW")
    return [
        f"- data: {training['data']}, {training['examples']:,} training images",
        f"- recipe: `minisd train {training['recipe']} --seed {settings['seed']}"
        f" --steps {settings['steps']} --precision {cost['precision']}`",
        f"- parameters: {training['parameters']:,}",
        f"- cost: {cost['seconds'] / 60:.1f} minutes on {cost['machine']}; "
        f"{settings['steps']:,} optimiser steps, {cost['images']:,} images seen",
        f"- optimiser: {optimizer}, learning rate {settings['learning_rate']:g}, "
        f"batch {settings['batch_size']}, moving average {settings['ema_decay']}",
        f"- last loss: {training['log'][-1]['loss']:.4f} (the whole curve is in `training.json`)",
    ]


def describe_counting(training: dict[str, Any]) -> list[str]:
    """Say how a tokenizer was made."""
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
    """Return the commit of the code that runs, or the version where there is no repository.

    "-dirty" marks a package that has changed since that commit.
    """
    from importlib.metadata import version

    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    if not (root / ".git").exists():
        return f"minisd {version('minisd')}"
    return git("rev-parse", "--short=12", "HEAD") + (
        "-dirty" if git("status", "--porcelain", "--", "minisd") else ""
    )
