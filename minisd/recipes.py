"""Chapter 4: named, complete training set-ups: data, model, loss, optimiser, steps."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from minisd import evaluation
from minisd.cards import commit, machine, processor, write_card
from minisd.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from minisd.data.captioned import Captioned
from minisd.data.digits import digits
from minisd.data.postcards import CLASSES, Postcards
from minisd.evaluation import Evaluation
from minisd.files import writable_folder, write_json
from minisd.metrics import Judge, JudgeConfig, judge_loss
from minisd.schedulers import DDPMScheduler, Scheduler
from minisd.schedules import timestep_probabilities
from minisd.tokenizer import Tokenizer, TokenizerConfig
from minisd.training import (
    CHECKPOINT,
    LossFunction,
    TrainingSettings,
    TrainingStep,
    clip_loss,
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
    evaluate: Evaluation
    scheduler: Scheduler | None = None

    product: ClassVar[str] = "model.safetensors"

    @property
    def steps(self) -> int:
        """How many steps there are to take."""
        return self.settings.steps

    def changed(self, steps: int | None = None, seed: int | None = None) -> Self:
        """Return the recipe with other settings; None leaves one as it is."""
        changes = {k: v for k, v in dict(steps=steps, seed=seed).items() if v is not None}
        return replace(self, settings=replace(self.settings, **changes))

    def follow(self, folder: Path, mixed_precision: str) -> Iterator[TrainingStep]:
        """Train, or go on from the checkpoint in `folder`; see `run`."""
        accelerator = Accelerator(mixed_precision=mixed_precision)
        if mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError("fp16 needs a GPU: on a CPU use bf16 or no mixed precision")
        made_by = commit()  # now: the files may change while the run lasts
        dataset = self.dataset()
        with torch.random.fork_rng():  # the initial weights are drawn by torch's global generator
            torch.random.manual_seed(self.settings.seed)
            model = self.model()
        state, checkpoint = None, folder / CHECKPOINT
        for state in train(model, self.loss, dataset, self.settings, checkpoint, accelerator):
            yield state

        if accelerator.is_main_process:
            finish(self, folder, state, dataset, accelerator, made_by)
        accelerator.wait_for_everyone()


@dataclass(frozen=True)
class TokenizerRecipe:
    """A recipe without steps: a tokenizer is made by counting, and nothing is drawn at random.

    It learns from the `captions` and `full_captions` of its data set.
    """

    name: str
    summary: str
    dataset: Callable[[], Dataset]
    vocab_size: int
    config: TokenizerConfig
    evaluate: Evaluation

    product: ClassVar[str] = "vocab.json"
    steps: ClassVar[int] = 0

    def changed(self, steps: int | None = None, seed: int | None = None) -> Self:
        """Return the recipe itself, the same for every seed; raises ValueError for steps."""
        if steps is not None:
            raise ValueError(f"{self.name} is made without steps: leave --steps away")
        return self

    def follow(self, folder: Path, mixed_precision: str) -> Iterator[TrainingStep]:
        """Make the tokenizer and yield nothing; no network computes, so no precision matters."""
        made_by, start = commit(), time.perf_counter()
        dataset = self.dataset()
        captions = dataset.captions + dataset.full_captions
        tokenizer = Tokenizer.train(captions, self.vocab_size, self.config)
        tokenizer.save_pretrained(folder)
        training = {
            "recipe": self.name,
            "summary": self.summary,
            "data": dataset.source,
            "captions": len(captions),
            "vocab_size": tokenizer.vocab_size,
            "merges": len(tokenizer.ranks),
            "settings": {"vocab_size": self.vocab_size, **asdict(self.config)},
            "cost": {
                "seconds": round(time.perf_counter() - start, 3),
                "machine": processor(),
            },
            "commit": made_by,
        }
        write_json(folder / "training.json", training)
        write_card(folder)
        yield from ()


AnyRecipe = Recipe | TokenizerRecipe


def postcards_clip() -> CLIP:
    """Return an untrained CLIP for postcards, whose words are those of tokenizer-postcards."""
    tokenizer = Tokenizer.from_pretrained(evaluation.TOKENIZER)
    text = CLIPTextConfig(
        vocab_size=tokenizer.vocab_size,
        max_length=tokenizer.config.model_max_length,
        eos_token_id=tokenizer.eos_token_id,
        num_heads=3,
    )
    return CLIP(CLIPConfig(text, CLIPVisionConfig(dim=128, num_heads=2)))


DIGITS_SCHEDULER = DDPMScheduler()
JUDGE_SETTINGS = TrainingSettings(steps=1000, batch_size=128, learning_rate=2e-3)
CLIP_SETTINGS = TrainingSettings(
    steps=2000, batch_size=128, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.998
)


def examples(settings: TrainingSettings) -> int:
    """Return how many pictures a run sees, where each is to be seen once."""
    return settings.steps * settings.batch_size


RECIPES: dict[str, AnyRecipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="digits-judge",
            summary="a classifier of digits, the judge of everything that draws digits",
            model=lambda: Judge(JudgeConfig()),
            dataset=lambda: digits("train"),
            loss=judge_loss,
            settings=TrainingSettings(steps=3000, batch_size=128, learning_rate=2e-3),
            evaluate=evaluation.evaluate_digits_judge,
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
            evaluate=evaluation.evaluate_digits,
            scheduler=DIGITS_SCHEDULER,
        ),
        TokenizerRecipe(
            name="tokenizer-postcards",
            summary="the words of the postcards' captions, as byte-pair encoding finds them",
            dataset=lambda: Postcards("train"),
            vocab_size=1000,
            config=TokenizerConfig(model_max_length=33),  # the longest caption that can be has 31
            evaluate=evaluation.evaluate_tokenizer,
        ),
        Recipe(
            name="postcards-judge",
            summary="a classifier with a head for each attribute, the judge of drawn postcards",
            model=lambda: Judge(JudgeConfig(3, (16, 32, 64, 128), 128, CLASSES, layout=4)),
            dataset=lambda: Postcards("all", examples(JUDGE_SETTINGS), seed=1),
            loss=judge_loss,
            settings=JUDGE_SETTINGS,
            evaluate=evaluation.evaluate_postcards_judge,
        ),
        Recipe(
            name="clip-postcards",
            summary="two transformers that place postcards and their captions in one space",
            model=postcards_clip,
            dataset=lambda: Captioned(
                Postcards("train", examples(CLIP_SETTINGS)),
                Tokenizer.from_pretrained(evaluation.TOKENIZER),
            ),
            loss=clip_loss,
            settings=CLIP_SETTINGS,
            evaluate=evaluation.evaluate_postcards_clip,
        ),
    )
}


def find_recipe(name: str) -> AnyRecipe:
    """Return the recipe of that name, or raise ValueError that lists all names."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]


def run(
    recipe: AnyRecipe,
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
    recipe = recipe.changed(steps=steps, seed=seed)
    folder = writable_folder(folder)
    if not resume and any((folder / file).exists() for file in (CHECKPOINT, recipe.product)):
        raise ValueError(f"{folder} holds a run already: add --resume, or choose another folder")
    yield from recipe.follow(folder, mixed_precision)


def finish(
    recipe: Recipe,
    folder: Path,
    state: TrainingStep,
    dataset: Dataset,
    accelerator: Accelerator,
    made_by: str,
) -> None:
    """Write model, scheduler, log and card of a run that is complete."""
    settings = recipe.settings
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
