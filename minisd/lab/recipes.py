"""Chapter 4: named, complete training set-ups: data, model, loss, optimiser, steps.

A recipe is what it is called and trained with, and a function that builds the rest when it is run.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from minisd.classifier import Classifier, ClassifierConfig
from minisd.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from minisd.conditioning import captioned_images, labelled_images
from minisd.data.captioned import Captioned, Latents, Mapped
from minisd.data.digits import digits
from minisd.data.postcards import CLASSES, LAYERS, Postcards
from minisd.device import best_device
from minisd.files import writable_folder, write_json
from minisd.lab import evaluation
from minisd.lab.cards import commit, network_record, tokenizer_record, write_card
from minisd.lab.evaluation import Evaluation
from minisd.lab.precision import Way, choose, wished
from minisd.losses import (
    LossFunction,
    autoencoder_loss,
    classifier_loss,
    clip_loss,
    diffusion_loss,
    segmenter_loss,
)
from minisd.maps import MapPipeline, widened, with_maps
from minisd.pretrained import Pretrained
from minisd.schedulers import DDPMScheduler, DPMSolverMultistepScheduler, Scheduler
from minisd.schedules import timestep_probabilities
from minisd.stable_diffusion import INDEX, StableDiffusionPipeline
from minisd.tokenizer import Tokenizer, TokenizerConfig
from minisd.training import CHECKPOINT, TrainingSettings, TrainingStep, new_accelerator, train
from minisd.unet import UNet, UNetConfig
from minisd.vae import AutoencoderKL, VAEConfig, measure_scaling_factor

DIGITS_SCHEDULER = DDPMScheduler()
DIGITS_PROBABILITIES = timestep_probabilities(DIGITS_SCHEDULER.alphas_cumprod, mean=-1.2, std=1.2)
POSTCARDS_SCHEDULER = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
POSTCARDS_SAMPLER = DPMSolverMultistepScheduler.from_config(
    POSTCARDS_SCHEDULER.config | {"timestep_spacing": "trailing"}
)
POSTCARDS_PROBABILITIES = timestep_probabilities(
    POSTCARDS_SCHEDULER.alphas_cumprod, mean=-1.0, std=2.0
)
SCALED_BY = 1000  # postcards that measure the scaling factor
ENCODED = 60_000  # postcards that latent diffusion learns from

Save = Callable[[Any, Path, Any], None]  # the model and the data set are those of the recipe


def save_model(model: Pretrained, folder: Path, dataset: Dataset) -> None:
    """Save a trained model in half precision."""
    model.save_pretrained(folder, dtype=torch.float16)


def save_with(scheduler: Scheduler) -> Save:
    """Return a function that saves a model beside the scheduler that it was trained with."""

    def save(model: Pretrained, folder: Path, dataset: Dataset) -> None:
        save_model(model, folder, dataset)
        scheduler.save_pretrained(folder)

    return save


def save_autoencoder(vae: AutoencoderKL, folder: Path, dataset: Postcards) -> None:
    """Save an autoencoder with the scaling factor that gives its latents unit variance."""
    images = torch.stack([image for image, *_ in dataset.__getitems__(list(range(SCALED_BY)))])
    factor = measure_scaling_factor(vae, images.to(next(vae.parameters()).device))
    scaled = copy.copy(vae)  # the same weights
    scaled.config = replace(vae.config, scaling_factor=round(factor, 5))
    save_model(scaled, folder, dataset)


def save_pipeline(unet: UNet, folder: Path, dataset: Dataset) -> None:
    """Save a trained U-Net as a pipeline, with all that it needs to draw."""
    tokenizer, text_encoder, vae = frozen_parts()
    pipeline = StableDiffusionPipeline(tokenizer, text_encoder, unet, vae, POSTCARDS_SAMPLER)
    pipeline.save_pretrained(folder, dtype=torch.float16)


def save_beside_system(unet: UNet, folder: Path, dataset: Dataset) -> None:
    """Save a trained U-Net that reads maps; the rest of its pipeline is that of `postcards`."""
    unet.save_pretrained(folder / "unet", dtype=torch.float16)
    POSTCARDS_SAMPLER.save_pretrained(folder / "scheduler")
    index = {"_class_name": MapPipeline.__name__, "base_model": evaluation.POSTCARDS}
    write_json(folder / INDEX, index)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, dataset: Dataset) -> None:
    """Save a tokenizer."""
    tokenizer.save_pretrained(folder)


class Parts(NamedTuple):
    """What a recipe builds when it is run."""

    model: Any  # a network to train, or a tokenizer that is complete
    loss: LossFunction | None = None  # None for a tokenizer
    save: Save = save_model


Build = Callable[[torch.device], Parts]


@dataclass(frozen=True)
class Recipe:
    """Everything that `minisd train NAME` needs to make the checkpoint NAME from nothing."""

    name: str
    summary: str
    build: Build  # its random numbers are those of the seed
    dataset: Callable[[], Any]
    evaluate: Evaluation
    settings: TrainingSettings | None = None  # None for a tokenizer, which is made without steps
    output: str = "model.safetensors"  # the file that shows that a run is complete
    samples: int = 5000  # that score it
    requires: tuple[str, ...] = ()  # the recipes whose models it builds on, in order

    @property
    def steps(self) -> int:
        """How many optimiser steps the recipe takes; 0 for a tokenizer."""
        return self.settings.steps if self.settings else 0

    def changed(self, steps: int | None = None, seed: int | None = None) -> Self:
        """Return the recipe with other settings; None leaves one as it is.

        A tokenizer is the same for every seed; raises ValueError for its steps.
        """
        if self.settings is None:
            if steps is not None:
                raise ValueError(f"{self.name} is made without steps: omit --steps")
            return self
        changes = {k: v for k, v in dict(steps=steps, seed=seed).items() if v is not None}
        return replace(self, settings=replace(self.settings, **changes))


RECIPES: dict[str, Recipe] = {}


def recipe(name: str, **fields: Any) -> Callable[[Build], Recipe]:
    """Turn the decorated function, which builds the parts, into a recipe, and enter it in RECIPES.

    Its docstring, without "Return", is the summary.
    """

    def register(build: Build) -> Recipe:
        summary = (build.__doc__ or name).removeprefix("Return ").removesuffix(".")
        RECIPES[name] = Recipe(name, summary, build, **fields)
        return RECIPES[name]

    return register


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
    channels_last: bool = False,
) -> Iterator[TrainingStep]:
    """Follow a recipe, yielding every step; at the end `folder` holds the model, log and card.

    `mixed_precision` is accelerate's: "no", "bf16" or (on a GPU) "fp16"; `channels_last` says how
    the weights lie in memory. "auto" goes on as the run began; at its beginning it times a few
    steps of each, takes the fastest, and says so in a warning. The weights kept are the moving
    average, in half precision. Raises ValueError if the folder cannot be written, holds a run
    already and `resume` is not set, or holds another run; and what `train` raises.
    """
    wish = wished(mixed_precision, channels_last)
    recipe = recipe.changed(steps, seed)
    settings, folder = recipe.settings, writable_folder(folder)
    if not resume and any((folder / file).exists() for file in (CHECKPOINT, recipe.output)):
        raise ValueError(f"{folder} holds a run already: add --resume, or choose another folder")
    accelerator = new_accelerator((wish or Way()).precision)
    made_by = commit()  # now: the files may change while the run lasts
    start = time.perf_counter()
    dataset = recipe.dataset()  # where pictures are encoded, that takes a while
    with torch.random.fork_rng():  # initial weights are drawn by torch's global generator
        torch.random.manual_seed(settings.seed if settings else 0)
        model, loss, save = recipe.build(accelerator.device)
    if settings and loss:
        checkpoint, name = folder / CHECKPOINT, recipe.name
        way, times = choose(wish, checkpoint, model, loss, dataset, settings, accelerator)
        model, accelerator = way.order(model), new_accelerator(way.precision)
        spent = time.perf_counter() - start
        states = train(model, loss, dataset, settings, checkpoint, accelerator, spent, name, times)
        yield (state := next(states))  # there is at least one
        for state in states:
            yield state
        model = state.ema
        record = network_record(state, dataset, settings, accelerator, times)
    else:
        record = tokenizer_record(model, dataset, time.perf_counter() - start)
    if accelerator.is_main_process:
        save(model, folder, dataset)
        head = {"recipe": recipe.name, "summary": recipe.summary, "commit": made_by}
        write_json(folder / "training.json", head | record)
        write_card(folder)
    accelerator.wait_for_everyone()


def postcards_clip() -> CLIP:
    """Return an untrained CLIP for postcards, whose words are those of tokenizer-postcards."""
    tokenizer = Tokenizer.from_pretrained(evaluation.TOKENIZER)
    text = CLIPTextConfig(
        vocab_size=tokenizer.vocab_size,
        max_length=tokenizer.config.model_max_length,
        eos_token_id=tokenizer.eos_token_id,
        num_heads=3,
    )
    return CLIP(CLIPConfig(text, CLIPVisionConfig(dim=128, num_heads=2, stem=(32, 64), layout=4)))


def frozen_parts() -> tuple[Tokenizer, CLIPTextModel, AutoencoderKL]:
    """Return what latent diffusion builds on, trained before it and not changed by it."""
    text_encoder = CLIP.from_pretrained(evaluation.POSTCARDS_CLIP).text_model
    vae = AutoencoderKL.from_pretrained("postcards-vae")
    for network in (text_encoder, vae):
        network.requires_grad_(False)
    return Tokenizer.from_pretrained(evaluation.TOKENIZER), text_encoder, vae


def examples(settings: TrainingSettings) -> int:
    """Return how many pictures a run needs to see each only once."""
    return settings.steps * settings.batch_size


# The recipes


@recipe(
    "digits-judge",
    dataset=partial(digits, "train"),
    settings=TrainingSettings(steps=3000, batch_size=128, learning_rate=2e-3),
    evaluate=evaluation.evaluate_digits_judge,
)
def digits_judge(device: torch.device) -> Parts:
    """Return a classifier of digits, the judge of everything that draws digits."""
    return Parts(Classifier(ClassifierConfig()), classifier_loss)


@recipe(
    "digits-ddpm",
    dataset=partial(digits, "train"),
    settings=TrainingSettings(
        steps=8000, batch_size=64, learning_rate=1e-3, warmup_steps=200, ema_decay=0.9995
    ),
    evaluate=evaluation.evaluate_digits,
)
def digits_ddpm(device: torch.device) -> Parts:
    """Return a U-Net that predicts the noise in a digit: unconditional DDPM, 28x28."""
    loss = diffusion_loss(DIGITS_SCHEDULER, DIGITS_PROBABILITIES)
    return Parts(UNet(UNetConfig.MNIST), loss, save_with(DIGITS_SCHEDULER))


@recipe(
    "digits-class",
    dataset=partial(digits, "train"),
    settings=TrainingSettings(
        steps=1500,
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=100,
        ema_decay=0.998,
        optimizer="Muon",
    ),
    evaluate=evaluation.evaluate_digits_class,
    samples=1000,
)
def digits_class(device: torch.device) -> Parts:
    """Return a U-Net that draws the digit that it is asked for."""
    prepare = labelled_images(num_classes=10)
    loss = diffusion_loss(DIGITS_SCHEDULER, DIGITS_PROBABILITIES, prepare)
    return Parts(UNet(UNetConfig.MNIST_CLASSES), loss, save_with(DIGITS_SCHEDULER))


@recipe(
    evaluation.TOKENIZER,
    dataset=partial(Postcards, "train"),
    evaluate=evaluation.evaluate_tokenizer,
    output="vocab.json",
)
def tokenizer_postcards(device: torch.device) -> Parts:
    """Return the words of the postcards' captions, as byte-pair encoding finds them."""
    postcards = Postcards("train")
    captions = postcards.captions + postcards.full_captions
    config = TokenizerConfig(model_max_length=33)  # the longest caption that can be has 31
    return Parts(Tokenizer.train(captions, 1000, config), save=save_tokenizer)


JUDGE_SETTINGS = TrainingSettings(steps=1000, batch_size=128, learning_rate=2e-3)


@recipe(
    evaluation.POSTCARDS_JUDGE,
    dataset=partial(Postcards, "all", examples(JUDGE_SETTINGS), seed=1),
    settings=JUDGE_SETTINGS,
    evaluate=evaluation.evaluate_postcards_judge,
)
def postcards_judge(device: torch.device) -> Parts:
    """Return a classifier with a head for each attribute, the judge of drawn postcards."""
    config = ClassifierConfig(3, (16, 32, 64, 128), 128, CLASSES, layout=4)
    return Parts(Classifier(config), classifier_loss)


CLIP_SETTINGS = TrainingSettings(
    steps=320,
    batch_size=512,
    learning_rate=2e-3,
    warmup_steps=40,
    ema_decay=0.99,
    optimizer="Muon",
)


def captioned_postcards() -> Captioned:
    """Return the postcards that CLIP learns from, with the ids of their captions."""
    tokenizer = Tokenizer.from_pretrained(evaluation.TOKENIZER)
    return Captioned(Postcards("train", examples(CLIP_SETTINGS)), tokenizer)


@recipe(
    evaluation.POSTCARDS_CLIP,
    dataset=captioned_postcards,
    settings=CLIP_SETTINGS,
    evaluate=evaluation.evaluate_postcards_clip,
    requires=(evaluation.TOKENIZER,),
)
def clip_postcards(device: torch.device) -> Parts:
    """Return two transformers that place postcards and their captions in one space."""
    return Parts(postcards_clip(), clip_loss)


VAE_SETTINGS = TrainingSettings(
    steps=8000,
    batch_size=16,
    learning_rate=1.5e-3,
    warmup_steps=100,
    ema_decay=0.998,
    optimizer="Muon",
)


@recipe(
    "postcards-vae",
    dataset=partial(Postcards, "train", examples(VAE_SETTINGS)),
    settings=VAE_SETTINGS,
    evaluate=evaluation.evaluate_postcards_vae,
)
def postcards_vae(device: torch.device) -> Parts:
    """Return an autoencoder that makes postcards 48 times smaller: 8x8x4 latents."""
    loss = autoencoder_loss(kl_weight=1e-6, distance=F.mse_loss)
    return Parts(AutoencoderKL(VAEConfig.POSTCARDS), loss, save_autoencoder)


POSTCARDS_SETTINGS = TrainingSettings(
    steps=4800,
    batch_size=64,
    learning_rate=4e-3,
    warmup_steps=200,
    ema_decay=0.999,
    optimizer="Muon",
)


def postcards_latents() -> Latents:
    """Return captioned postcards, encoded by the autoencoder."""
    tokenizer, _, vae = frozen_parts()
    return Latents(Captioned(Postcards("train", ENCODED), tokenizer), vae.to(best_device()))


def postcards_loss(device: torch.device) -> LossFunction:
    """Return the loss of latent diffusion with words: Rombach et al. 2022, eq. 3."""
    tokenizer, text_encoder, _ = frozen_parts()
    prepare = captioned_images(text_encoder.to(device), tokenizer([""])[0])
    return diffusion_loss(POSTCARDS_SCHEDULER, POSTCARDS_PROBABILITIES, prepare)


@recipe(
    evaluation.POSTCARDS,
    dataset=postcards_latents,
    settings=POSTCARDS_SETTINGS,
    evaluate=evaluation.evaluate_postcards,
    output=INDEX,
    samples=500,
    requires=(evaluation.TOKENIZER, evaluation.POSTCARDS_CLIP, "postcards-vae"),
)
def postcards(device: torch.device) -> Parts:
    """Return Stable Diffusion for postcards: draws in latent space what a prompt says."""
    return Parts(UNet(UNetConfig.POSTCARDS), postcards_loss(device), save_pipeline)


SEGMENTER_SETTINGS = TrainingSettings(
    steps=500,
    batch_size=32,
    learning_rate=2e-3,
    warmup_steps=50,
    ema_decay=0.99,
    optimizer="Muon",
)


def postcards_with_maps() -> Mapped:
    """Return postcards, each with the map of what is where in it."""
    postcards = Postcards("all", examples(SEGMENTER_SETTINGS), seed=1)
    return Mapped(postcards, postcards)


@recipe(
    evaluation.POSTCARDS_SEGMENTER,
    dataset=postcards_with_maps,
    settings=SEGMENTER_SETTINGS,
    evaluate=evaluation.evaluate_postcards_segmenter,
    samples=1000,
)
def postcards_segmenter(device: torch.device) -> Parts:
    """Return a U-Net that says for each pixel of a postcard what it belongs to."""
    config = UNetConfig(64, 3, len(LAYERS), (16, 32, 64), (False,) * 3)
    return Parts(UNet(config), segmenter_loss)


def latents_with_maps() -> Mapped:
    """Return the latents that `postcards` learns from, each with the map of its postcard."""
    return Mapped(postcards_latents(), Postcards("train", ENCODED))


@recipe(
    "postcards-maps",
    dataset=latents_with_maps,
    settings=replace(POSTCARDS_SETTINGS, steps=1200, learning_rate=2e-3),
    evaluate=evaluation.evaluate_postcards_maps,
    output=INDEX,
    samples=200,
    requires=(
        *(evaluation.TOKENIZER, evaluation.POSTCARDS_CLIP, "postcards-vae"),
        *(evaluation.POSTCARDS, evaluation.POSTCARDS_SEGMENTER),
    ),
)
def postcards_maps(device: torch.device) -> Parts:
    """Return the U-Net of postcards, taught to see a map of what is where as well."""
    downscale = VAEConfig.POSTCARDS.downscale
    unet = UNet.from_pretrained(evaluation.POSTCARDS, "unet")  # it can draw already
    unet = widened(unet, len(LAYERS) * downscale**2)  # and gets room for a map
    return Parts(
        unet, with_maps(postcards_loss(device), len(LAYERS), downscale), save_beside_system
    )
