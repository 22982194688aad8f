"""Recipes so small that a whole run takes seconds; as a script: `tiny.py RECIPE FOLDER [--resume]`.

`tiny-ddpm` is a DDPM of digits, `tiny-classifier` draws no random number while it trains; both see
the UCI digits at half size, 14x14. The others see a few postcards.
"""

import sys
from dataclasses import replace
from functools import partial

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
from minisd.lab.recipes import Parts, Recipe, run, save_tokenizer, save_with
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


def ddpm(device):
    return Parts(UNet(TINY_UNET), diffusion_loss(SCHEDULER), save_with(SCHEDULER))


def labelled(device):
    loss = diffusion_loss(SCHEDULER, prepare=labelled_images(10))
    return Parts(UNet(replace(TINY_UNET, context_dim=10)), loss, save_with(SCHEDULER))


def tokenizer(device):
    postcards, config = Postcards("train", 60), TokenizerConfig(model_max_length=40)
    captions = postcards.captions + postcards.full_captions
    return Parts(Tokenizer.train(captions, 300, config), save=save_tokenizer)


def captioned():
    return Captioned(Postcards("train", 64), Tokenizer.from_pretrained(scores.TOKENIZER))


def postcards_judge(device):
    config = ClassifierConfig(3, (8, 8, 8), 16, CLASSES, layout=2)
    return Parts(Classifier(config), classifier_loss)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("tiny-ddpm", "a tiny U-Net", ddpm, small_digits, scores.evaluate_digits, SETTINGS),
        Recipe(
            "tiny-class",
            "a tiny U-Net that draws what it is asked for",
            labelled,
            small_digits,
            scores.evaluate_digits_class,
            SETTINGS,
        ),
        Recipe(
            "tiny-classifier",
            "a tiny classifier",
            lambda device: Parts(Classifier(TINY_JUDGE), plain_loss),
            small_digits,
            scores.evaluate_digits_judge,
            replace(SETTINGS, steps=60, learning_rate=1e-2),
        ),
        Recipe(
            "tiny-tokenizer",
            "a tokenizer of a few words",
            tokenizer,
            partial(Postcards, "train", 60),
            scores.evaluate_tokenizer,
            output="vocab.json",
        ),
        Recipe(
            "tiny-postcards-judge",
            "a tiny classifier with a head for each attribute",
            postcards_judge,
            partial(Postcards, "all", 64),
            scores.evaluate_postcards_judge,
            SETTINGS,
        ),
        Recipe(
            "tiny-clip",
            "two tiny transformers",
            lambda device: Parts(CLIP(TINY_CLIP), clip_loss),
            captioned,
            scores.evaluate_postcards_clip,
            SETTINGS,
        ),
    )
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe, folder, *rest = sys.argv[1:]
    for _ in run(RECIPES[recipe], folder, resume="--resume" in rest):
        pass
