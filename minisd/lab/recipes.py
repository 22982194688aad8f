"""Chapter 4: named, complete training set-ups: data, model, loss, optimiser, steps."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import Dataset

from minisd.classifier import Classifier, ClassifierConfig
from minisd.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig
from minisd.conditioning import captioned_images, labelled_images
from minisd.data.captioned import Captioned, Latents, Mapped
from minisd.data.digits import digits
from minisd.data.postcards import CLASSES, LAYERS, Postcards
from minisd.device import best_device, processor
from minisd.files import writable_folder, write_json
from minisd.lab import evaluation
from minisd.lab.cards import commit, machine, write_card
from minisd.lab.evaluation import Evaluation
from minisd.losses import (
    LossFunction,
    autoencoder_loss,
    classifier_loss,
    clip_loss,
    diffusion_loss,
    segmenter_loss,
)
from minisd.maps import MapPipeline, widened, with_maps
from minisd.schedulers import DDPMScheduler, DPMSolverMultistepScheduler, Scheduler
from minisd.schedules import timestep_probabilities
from minisd.stable_diffusion import INDEX, StableDiffusionPipeline
from minisd.tokenizer import Tokenizer, TokenizerConfig
from minisd.training import CHECKPOINT, TrainingSettings, TrainingStep, train
from minisd.unet import UNet, UNetConfig
from minisd.vae import AutoencoderKL, VAEConfig, measure_scaling_factor

Save = Callable[[nn.Module, Path, Dataset], None]


def save_model(model: nn.Module, folder: Path, dataset: Dataset) -> None:
    """Save a trained model in half precision."""
    model.save_pretrained(folder, dtype=torch.float16)


def save_with(scheduler: Scheduler) -> Save:
    """Save a trained model, and beside it the scheduler that it was trained for."""

    def save(model: nn.Module, folder: Path, dataset: Dataset) -> None:
        save_model(model, folder, dataset)
        scheduler.save_pretrained(folder)

    return save


def save_autoencoder(vae: AutoencoderKL, folder: Path, dataset: Dataset) -> None:
    """Save an autoencoder with the scaling factor that gives its latents unit variance."""
    images = torch.stack([image for image, *_ in dataset.__getitems__(list(range(SCALED_BY)))])
    factor = measure_scaling_factor(vae, images.to(next(vae.parameters()).device))
    scaled = copy.copy(vae)  # the same weights
    scaled.config = replace(vae.config, scaling_factor=round(factor, 5))
    save_model(scaled, folder, dataset)


def save_pipeline(unet: UNet, folder: Path, dataset: Dataset) -> None:
    """Save a trained U-Net together with everything that it needs to draw."""
    tokenizer, text_encoder, vae = frozen_parts()
    pipeline = StableDiffusionPipeline(tokenizer, text_encoder, unet, vae, POSTCARDS_SAMPLER)
    pipeline.save_pretrained(folder, dtype=torch.float16)


def save_beside_system(unet: UNet, folder: Path, dataset: Dataset) -> None:
    """Save a trained U-Net that reads maps; all else is that of `postcards`."""
    unet.save_pretrained(folder / "unet", dtype=torch.float16)
    POSTCARDS_SAMPLER.save_pretrained(folder / "scheduler")
    index = {"_class_name": MapPipeline.__name__, "base_model": evaluation.POSTCARDS}
    write_json(folder / INDEX, index)


@dataclass(frozen=True)
class Recipe:
    """Everything that `minisd train NAME` needs to make the checkpoint NAME from nothing."""

    name: str
    summary: str
    model: Callable[[], nn.Module]
    dataset: Callable[[], Dataset]
    loss: Callable[[torch.device], LossFunction]
    settings: TrainingSettings
    evaluate: Evaluation
    save: Save = save_model
    product: str = "model.safetensors"
    samples: int = 5000  # that score it
    needs: tuple[str, ...] = ()  # the recipes whose models it builds on, in order

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
        start = time.perf_counter()
        dataset = self.dataset()
        spent = time.perf_counter() - start  # where pictures are encoded, that takes a while
        with torch.random.fork_rng():  # the initial weights are drawn by torch's global generator
            torch.random.manual_seed(self.settings.seed)
            model = self.model()
        state, checkpoint = None, folder / CHECKPOINT
        loss = self.loss(accelerator.device)
        for state in train(model, loss, dataset, self.settings, checkpoint, accelerator, spent):
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

    samples: int = 5000  # that score it
    needs: ClassVar[tuple[str, ...]] = ()
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
    return CLIP(CLIPConfig(text, CLIPVisionConfig(dim=128, num_heads=2, stem=(32, 64), layout=4)))


def frozen_parts() -> tuple[Tokenizer, CLIPTextModel, AutoencoderKL]:
    """Return what latent diffusion builds on, trained before it and not changed by it."""
    text_encoder = CLIP.from_pretrained(evaluation.POSTCARDS_CLIP).text_model
    vae = AutoencoderKL.from_pretrained("postcards-vae")
    for network in (text_encoder, vae):
        network.requires_grad_(False)
    return Tokenizer.from_pretrained(evaluation.TOKENIZER), text_encoder, vae


def postcards_latents() -> Latents:
    """Return captioned postcards as the autoencoder sees them."""
    tokenizer, _, vae = frozen_parts()
    return Latents(Captioned(Postcards("train", ENCODED), tokenizer), vae.to(best_device()))


def postcards_loss(device: torch.device) -> LossFunction:
    """Return the loss of latent diffusion with words: Rombach et al. 2022, eq. 3."""
    tokenizer, text_encoder, _ = frozen_parts()
    prepare = captioned_images(text_encoder.to(device), tokenizer([""])[0])
    return diffusion_loss(POSTCARDS_SCHEDULER, POSTCARDS_PROBABILITIES, prepare)


def postcards_with_maps() -> Mapped:
    """Return postcards, each with the map of what is where in it."""
    postcards = Postcards("all", examples(SEGMENTER_SETTINGS), seed=1)
    return Mapped(postcards, postcards)


def postcards_maps_unet() -> UNet:
    """Return the U-Net of `postcards`, which has learned to draw, with room for a map."""
    unet = UNet.from_pretrained(evaluation.POSTCARDS, "unet")
    return widened(unet, len(LAYERS) * VAEConfig.POSTCARDS.downscale**2)


DIGITS_SCHEDULER = DDPMScheduler()
DIGITS_PROBABILITIES = timestep_probabilities(DIGITS_SCHEDULER.alphas_cumprod, mean=-1.2, std=1.2)
POSTCARDS_SCHEDULER = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
POSTCARDS_SAMPLER = DPMSolverMultistepScheduler.from_config(
    POSTCARDS_SCHEDULER.config | {"timestep_spacing": "trailing"}
)
POSTCARDS_PROBABILITIES = timestep_probabilities(
    POSTCARDS_SCHEDULER.alphas_cumprod, mean=-1.0, std=2.0
)
POSTCARDS_SETTINGS = TrainingSettings(
    steps=4800,
    batch_size=64,
    learning_rate=4e-3,
    warmup_steps=200,
    ema_decay=0.999,
    optimizer="Muon",
)
JUDGE_SETTINGS = TrainingSettings(steps=1000, batch_size=128, learning_rate=2e-3)
CLIP_SETTINGS = TrainingSettings(
    steps=320,
    batch_size=512,
    learning_rate=2e-3,
    warmup_steps=40,
    ema_decay=0.99,
    optimizer="Muon",
)
VAE_SETTINGS = TrainingSettings(
    steps=8000,
    batch_size=16,
    learning_rate=1.5e-3,
    warmup_steps=100,
    ema_decay=0.998,
    optimizer="Muon",
)
SEGMENTER_SETTINGS = TrainingSettings(
    steps=500,
    batch_size=32,
    learning_rate=2e-3,
    warmup_steps=50,
    ema_decay=0.99,
    optimizer="Muon",
)
SCALED_BY = 1000  # postcards that measure the scaling factor
ENCODED = 60_000  # postcards that latent diffusion learns from


def examples(settings: TrainingSettings) -> int:
    """Return how many pictures a run sees, where each is to be seen once."""
    return settings.steps * settings.batch_size


RECIPES: dict[str, AnyRecipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="digits-judge",
            summary="a classifier of digits, the judge of everything that draws digits",
            model=lambda: Classifier(ClassifierConfig()),
            dataset=lambda: digits("train"),
            loss=lambda device: classifier_loss,
            settings=TrainingSettings(steps=3000, batch_size=128, learning_rate=2e-3),
            evaluate=evaluation.evaluate_digits_judge,
        ),
        Recipe(
            name="digits-ddpm",
            summary="a U-Net that predicts the noise in a digit: unconditional DDPM, 28x28",
            model=lambda: UNet(UNetConfig.MNIST),
            dataset=lambda: digits("train"),
            loss=lambda device: diffusion_loss(DIGITS_SCHEDULER, DIGITS_PROBABILITIES),
            settings=TrainingSettings(
                steps=8000, batch_size=64, learning_rate=1e-3, warmup_steps=200, ema_decay=0.9995
            ),
            evaluate=evaluation.evaluate_digits,
            save=save_with(DIGITS_SCHEDULER),
        ),
        Recipe(
            name="digits-class",
            summary="a U-Net that draws the digit that it is asked for",
            model=lambda: UNet(UNetConfig.MNIST_CLASSES),
            dataset=lambda: digits("train"),
            loss=lambda device: diffusion_loss(
                DIGITS_SCHEDULER, DIGITS_PROBABILITIES, labelled_images(num_classes=10)
            ),
            settings=TrainingSettings(
                steps=1500,
                batch_size=64,
                learning_rate=2e-3,
                warmup_steps=100,
                ema_decay=0.998,
                optimizer="Muon",
            ),
            evaluate=evaluation.evaluate_digits_class,
            save=save_with(DIGITS_SCHEDULER),
            samples=1000,
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
            model=lambda: Classifier(
                ClassifierConfig(3, (16, 32, 64, 128), 128, CLASSES, layout=4)
            ),
            dataset=lambda: Postcards("all", examples(JUDGE_SETTINGS), seed=1),
            loss=lambda device: classifier_loss,
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
            loss=lambda device: clip_loss,
            settings=CLIP_SETTINGS,
            evaluate=evaluation.evaluate_postcards_clip,
            needs=(evaluation.TOKENIZER,),
        ),
        Recipe(
            name="postcards-vae",
            summary="an autoencoder that makes postcards 48 times smaller: 8x8x4 latents",
            model=lambda: AutoencoderKL(VAEConfig.POSTCARDS),
            dataset=lambda: Postcards("train", examples(VAE_SETTINGS)),
            loss=lambda device: autoencoder_loss(kl_weight=1e-6, distance=F.mse_loss),
            settings=VAE_SETTINGS,
            evaluate=evaluation.evaluate_postcards_vae,
            save=save_autoencoder,
        ),
        Recipe(
            name="postcards",
            summary="Stable Diffusion for postcards: draws in latent space what a prompt says",
            model=lambda: UNet(UNetConfig.POSTCARDS),
            dataset=postcards_latents,
            loss=postcards_loss,
            settings=POSTCARDS_SETTINGS,
            evaluate=evaluation.evaluate_postcards,
            save=save_pipeline,
            product="model_index.json",
            samples=500,
            needs=(evaluation.TOKENIZER, evaluation.POSTCARDS_CLIP, "postcards-vae"),
        ),
        Recipe(
            name="postcards-segmenter",
            summary="a U-Net that says for each pixel of a postcard what it belongs to",
            model=lambda: UNet(UNetConfig(64, 3, len(LAYERS), (16, 32, 64), (False,) * 3)),
            dataset=postcards_with_maps,
            loss=lambda device: segmenter_loss,
            settings=SEGMENTER_SETTINGS,
            evaluate=evaluation.evaluate_postcards_segmenter,
            samples=1000,
        ),
        Recipe(
            name="postcards-maps",
            summary="the U-Net of postcards, taught to see a map of what is where as well",
            model=postcards_maps_unet,
            dataset=lambda: Mapped(postcards_latents(), Postcards("train", ENCODED)),
            loss=lambda device: with_maps(
                postcards_loss(device), len(LAYERS), VAEConfig.POSTCARDS.downscale
            ),
            settings=replace(POSTCARDS_SETTINGS, steps=1200, learning_rate=2e-3),
            evaluate=evaluation.evaluate_postcards_maps,
            save=save_beside_system,
            product="model_index.json",
            samples=200,
            needs=(
                *(evaluation.TOKENIZER, evaluation.POSTCARDS_CLIP, "postcards-vae"),
                *(evaluation.POSTCARDS, evaluation.POSTCARDS_SEGMENTER),
            ),
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
    recipe.save(state.ema, folder, dataset)
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
