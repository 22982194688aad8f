"""Recipes so small that a whole run takes seconds; as a script: `tiny.py RECIPE FOLDER [--resume]`.

`tiny-ddpm` is a DDPM of digits, `tiny-classifier` draws no random number while it trains; both see
the UCI digits at half size, 14x14. The others see a few postcards.
"""

import sys
from dataclasses import replace

import torch
import torch.nn.functional as F

from minisd import (
    CLIP,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    Tokenizer,
    TokenizerConfig,
    UNet,
    UNetConfig,
)
from minisd.classifier import Classifier, ClassifierConfig
from minisd.conditioning import labelled_images
from minisd.data.captioned import Captioned
from minisd.data.digits import Digits, uci_digits
from minisd.data.postcards import CLASSES, Postcards
from minisd.lab import evaluation as scores
from minisd.lab.recipes import Recipe, TokenizerRecipe, run, save_with
from minisd.losses import classifier_loss, clip_loss, diffusion_loss
from minisd.schedulers import DDPMScheduler
from minisd.training import TrainingSettings

TINY_UNET = UNetConfig(
    sample_size=14, channels=(8, 16), attention=(False, True), num_heads=2, norm_num_groups=4
)
TINY_JUDGE = ClassifierConfig(channels=(8, 16), num_features=16)
TINY_CLIP = CLIPConfig(
    CLIPTextConfig(511, 33, dim=16, num_layers=1, num_heads=1, eos_token_id=510),
    CLIPVisionConfig(64, 16, dim=16, num_layers=1, num_heads=1),
    embed_dim=8,
)
SCHEDULER = DDPMScheduler(num_train_timesteps=200, beta_end=0.1)


def small_digits():
    digits = uci_digits("train")
    return Digits(F.avg_pool2d(digits.images, 2), digits.labels, digits.source)


def plain_loss(judge, batch, generator):
    (logits,) = judge(batch[0]).values()
    return F.cross_entropy(logits, batch[1])


SETTINGS = TrainingSettings(
    steps=120, batch_size=16, learning_rate=4e-3, warmup_steps=10, log_every=5, save_every=5
)
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="tiny-ddpm",
            summary="a tiny U-Net",
            model=lambda: UNet(TINY_UNET),
            dataset=small_digits,
            loss=lambda device: diffusion_loss(SCHEDULER),
            settings=SETTINGS,
            evaluate=scores.evaluate_digits,
            save=save_with(SCHEDULER),
        ),
        Recipe(
            name="tiny-class",
            summary="a tiny U-Net that draws what it is asked for",
            model=lambda: UNet(replace(TINY_UNET, context_dim=10)),
            dataset=small_digits,
            loss=lambda device: diffusion_loss(SCHEDULER, prepare=labelled_images(10)),
            settings=SETTINGS,
            evaluate=scores.evaluate_digits_class,
            save=save_with(SCHEDULER),
        ),
        Recipe(
            name="tiny-classifier",
            summary="a tiny classifier",
            model=lambda: Classifier(TINY_JUDGE),
            dataset=small_digits,
            loss=lambda device: plain_loss,
            settings=replace(SETTINGS, steps=60, learning_rate=1e-2),
            evaluate=scores.evaluate_digits_judge,
        ),
        TokenizerRecipe(
            name="tiny-tokenizer",
            summary="a tokenizer of a few words",
            dataset=lambda: Postcards("train", 60),
            vocab_size=300,
            config=TokenizerConfig(model_max_length=40),
            evaluate=scores.evaluate_tokenizer,
        ),
        Recipe(
            name="tiny-postcards-judge",
            summary="a tiny classifier with a head for each attribute",
            model=lambda: Classifier(ClassifierConfig(3, (8, 8, 8), 16, CLASSES, layout=2)),
            dataset=lambda: Postcards("all", 64),
            loss=lambda device: classifier_loss,
            settings=SETTINGS,
            evaluate=scores.evaluate_postcards_judge,
        ),
        Recipe(
            name="tiny-clip",
            summary="two tiny transformers",
            model=lambda: CLIP(TINY_CLIP),
            dataset=lambda: Captioned(
                Postcards("train", 64), Tokenizer.from_pretrained(scores.TOKENIZER)
            ),
            loss=lambda device: clip_loss,
            settings=SETTINGS,
            evaluate=scores.evaluate_postcards_clip,
        ),
    )
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe, folder, *rest = sys.argv[1:]
    for _ in run(RECIPES[recipe], folder, resume="--resume" in rest):
        pass
