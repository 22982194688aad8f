"""Recipes so small that a whole run takes seconds; as a script: `tiny.py RECIPE FOLDER [--resume]`.

`tiny-ddpm` is a DDPM of digits, `tiny-classifier` draws no random number while it trains; both see
the UCI digits at half size, 14x14.
"""

import sys
from dataclasses import replace

import torch
import torch.nn.functional as F

from minisd import UNet, UNetConfig
from minisd.data.digits import Digits, uci_digits
from minisd.metrics import Judge, JudgeConfig
from minisd.recipes import Recipe, run
from minisd.schedulers import DDPMScheduler
from minisd.training import TrainingSettings, diffusion_loss

TINY_UNET = UNetConfig(
    sample_size=14, channels=(8, 16), attention=(False, True), num_heads=2, norm_num_groups=4
)
TINY_JUDGE = JudgeConfig(channels=(8, 16), num_features=16)
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
            loss=diffusion_loss(SCHEDULER),
            settings=SETTINGS,
            scheduler=SCHEDULER,
        ),
        Recipe(
            name="tiny-classifier",
            summary="a tiny classifier",
            model=lambda: Judge(TINY_JUDGE),
            dataset=small_digits,
            loss=plain_loss,
            settings=replace(SETTINGS, steps=60, learning_rate=1e-2),
        ),
    )
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe, folder, *rest = sys.argv[1:]
    for _ in run(RECIPES[recipe], folder, resume="--resume" in rest):
        pass
