"""Chapter 4: named, complete training set-ups: data, model, loss, optimiser, steps."""

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from minisd.data.digits import digits
from minisd.files import read_json, replacing, writable_folder, write_json
from minisd.metrics import Judge, JudgeConfig, judge_loss
from minisd.schedulers import DDPMScheduler, Scheduler
from minisd.schedules import timestep_probabilities
from minisd.training import (
    CHECKPOINT,
    LossFunction,
    TrainingSettings,
    TrainingStep,
    diffusion_loss,
    train,
)
from minisd.unet import UNet, UNetConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that `minisd train NAME` needs to make the checkpoint NAME from nothing."""

    name: str
    summary: str
    model: Callable[[], nn.Module]
    dataset: Callable[[], Dataset]
    loss: LossFunction
    settings: TrainingSettings
    scheduler: Scheduler | None = None


DIGITS_SCHEDULER = DDPMScheduler()

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="digits-judge",
            summary="a classifier of digits, the judge of everything that draws digits",
            model=lambda: Judge(JudgeConfig()),
            dataset=lambda: digits("train"),
            loss=judge_loss,
            settings=TrainingSettings(steps=3000, batch_size=128, learning_rate=2e-3),
        ),
        Recipe(
            name="digits-ddpm",
            summary="a U-Net that predicts the noise in a digit: unconditional DDPM, 28x28",
            model=lambda: UNet(UNetConfig.MNIST),
            dataset=lambda: digits("train"),
            loss=diffusion_loss(
                DIGITS_SCHEDULER,
                timestep_probabilities(DIGITS_SCHEDULER.alphas_cumprod, mean=-1.2, std=1.2),
            ),
            settings=TrainingSettings(
                steps=8000, batch_size=64, learning_rate=1e-3, warmup_steps=200, ema_decay=0.9995
            ),
            scheduler=DIGITS_SCHEDULER,
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of that name, or raise ValueError that lists all names."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]


def run(
    recipe: Recipe,
    folder: str | Path,
    steps: int | None = None,
    seed: int | None = None,
    resume: bool = False,
    mixed_precision: str = "no",
) -> Iterator[TrainingStep]:
    """Follow a recipe, yielding every step; at the end `folder` holds the model, log and card.

    `mixed_precision` is accelerate's: "no", "bf16" or (on a GPU) "fp16". The weights kept are the
    moving average, in half precision. Raises ValueError if the folder cannot be written, or holds
    a run already and `resume` is not set.
    """
    changes = {"steps": steps, "seed": seed}
    settings = replace(recipe.settings, **{k: v for k, v in changes.items() if v is not None})
    folder = writable_folder(folder)
    checkpoint = folder / CHECKPOINT
    if not resume and (checkpoint.exists() or (folder / "model.safetensors").exists()):
        raise ValueError(f"{folder} holds a run already: add --resume, or choose another folder")

    accelerator = Accelerator(mixed_precision=mixed_precision)
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("fp16 needs a GPU: on a CPU use bf16 or no mixed precision")
    made_by = commit()  # now: the files may change while the run lasts
    dataset = recipe.dataset()
    with torch.random.fork_rng():  # the initial weights are drawn by torch's global generator
        torch.random.manual_seed(settings.seed)
        model = recipe.model()
    state = None
    for state in train(model, recipe.loss, dataset, settings, checkpoint, accelerator):
        yield state

    if accelerator.is_main_process:
        finish(recipe, folder, settings, state, dataset, accelerator, made_by)
    accelerator.wait_for_everyone()


def finish(
    recipe: Recipe,
    folder: Path,
    settings: TrainingSettings,
    state: TrainingStep,
    dataset: Dataset,
    accelerator: Accelerator,
    made_by: str,
) -> None:
    """Write model, scheduler, log and card of a run that is complete."""
    state.ema.save_pretrained(folder, dtype=torch.float16)
    if recipe.scheduler is not None:
        recipe.scheduler.save_pretrained(folder)
    training = {
        "recipe": recipe.name,
        "summary": recipe.summary,
        "data": getattr(dataset, "source", type(dataset).__name__),
        "examples": len(dataset),
        "parameters": sum(p.numel() for p in state.ema.parameters()),
        "settings": asdict(settings),
        "cost": {
            "seconds": state.log[-1]["seconds"],
            "images": settings.steps * settings.batch_size,
            "machine": machine(accelerator),
            "precision": accelerator.mixed_precision,
        },
        "commit": made_by,
        "log": state.log,
    }
    write_json(folder / "training.json", training)
    write_card(folder)


def add_scores(folder: str | Path, scores: dict[str, Any]) -> None:
    """Keep scores in `training.json` and in the card of a trained model."""
    path = Path(folder) / "training.json"
    training = read_json(path)
    training["scores"] = training.get("scores", {}) | scores
    write_json(path, training)
    write_card(folder)


def write_card(folder: str | Path) -> None:
    """Write `card.md`, the readable form of `training.json` without the log."""
    training = read_json(Path(folder) / "training.json")
    cost, settings = training["cost"], training["settings"]
    lines = [
        f"# {training['recipe']}",
        "",
        f"{training['summary'][0].upper()}{training['summary'][1:]}.",
        "",
        f"- data: {training['data']}, {training['examples']:,} training images",
        f"- recipe: `minisd train {training['recipe']} --seed {settings['seed']}"
        f" --steps {settings['steps']} --precision {cost['precision']}`",
        f"- parameters: {training['parameters']:,}",
        f"- cost: {cost['seconds'] / 60:.1f} minutes on {cost['machine']}; "
        f"{settings['steps']:,} optimiser steps, {cost['images']:,} images seen",
        f"- optimiser: AdamW, learning rate {settings['learning_rate']:g}, "
        f"batch {settings['batch_size']}, moving average {settings['ema_decay']}",
        f"- last loss: {training['log'][-1]['loss']:.4f} (the whole curve is in `training.json`)",
        f"- made by commit: {training['commit']}",
        "",
        "## Scores",
        "",
    ]
    scores = training.get("scores", {})
    lines += [f"- {name}: {value}" for name, value in scores.items()] or ["Not scored yet."]
    with replacing(Path(folder) / "card.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def machine(accelerator: Accelerator) -> str:
    """Name the machine that a run used."""
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{os.cpu_count()}-core {platform.machine()} CPU"
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
