"""The race of chapter 10, run long: text to image on latents against the same on pixels.

    python benchmarks/pixels_or_latents.py [--steps 1000] [--samples 40] [--save]

Two U-Nets of similar size see the same postcards in the same order, with the same optimiser. At
doubling numbers of steps the averaged network draws the same captions, and a judge looks. Prints
one table: seconds of training (drawing does not count) and how many attributes were right. With
`--save` the rows are kept beside the checkpoint `postcards`, as `race.json`, for chapter 10.
"""

import argparse
from collections.abc import Callable, Iterator
from time import perf_counter

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import TensorDataset
from tqdm import tqdm

from minisd import UNet, UNetConfig
from minisd.classifier import Classifier, classify
from minisd.conditioning import captioned_images
from minisd.data.captioned import Captioned, Latents
from minisd.data.postcards import Postcards
from minisd.device import in_batches
from minisd.files import write_json
from minisd.intervals import bootstrap_interval
from minisd.lab.cards import machine
from minisd.lab.evaluation import POSTCARDS_JUDGE, UNSEEN_SEED
from minisd.lab.recipes import (
    POSTCARDS_PROBABILITIES,
    POSTCARDS_SAMPLER,
    POSTCARDS_SCHEDULER,
    frozen_parts,
)
from minisd.lab.results import table
from minisd.losses import diffusion_loss
from minisd.pipeline import ClassifierFreeGuidance, denoise
from minisd.pretrained import locate
from minisd.training import TrainingSettings, train

FILE = "race.json"
PICTURES, BATCH = 4000, 32
TEXT = dict(num_heads=4, context_dim=192)
RACERS = {
    "latents": UNetConfig(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        channels=(32, 64),
        attention=(True, True),
        **TEXT,
    ),
    "pixels": UNetConfig(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        channels=(16, 32, 64, 64),
        attention=(False, False, False, True),
        **TEXT,
    ),
}


class Course:
    """What both racers share: postcards to learn from, captions to draw, and the judge."""

    def __init__(self, pictures: int, samples: int):
        self.tokenizer, self.text_encoder, self.vae = frozen_parts()
        self.judge = Classifier.from_pretrained(POSTCARDS_JUDGE)
        cards = Postcards("train", pictures)
        self.latents = Latents(Captioned(cards, self.tokenizer), self.vae)
        self.pixels = cards.images()
        self.asked = Postcards("test", samples, seed=UNSEEN_SEED)

    def score(self, unet: UNet, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """Draw all captions in 10 steps, and say for each which attributes are right, (n,5)."""
        config, prompts = unet.config, self.asked.full_captions
        shape = (len(prompts), config.in_channels, config.sample_size, config.sample_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            context, nothing = (
                self.text_encoder(self.tokenizer(texts)) for texts in (prompts, [""])
            )
            guided = ClassifierFreeGuidance(unet.eval(), nothing, 3.0)
            *_, last = denoise(guided, POSTCARDS_SAMPLER, noise, 10, context=context)
        images = in_batches(decode, last.x).clamp(-1, 1)
        return classify(self.judge, images) == self.asked.labels

    def run(self, name: str, steps: int) -> Iterator[dict]:
        """Train one racer, yielding a row after each doubling of the steps."""
        config = RACERS[name]
        data = TensorDataset(
            self.latents.latents if name == "latents" else self.pixels, self.latents.ids
        )
        decode = self.vae.decode if name == "latents" else torch.nn.Identity()
        settings = TrainingSettings(
            steps, BATCH, 4e-3, warmup_steps=20, ema_decay=0.98, optimizer="Muon"
        )
        loss = diffusion_loss(
            POSTCARDS_SCHEDULER,
            POSTCARDS_PROBABILITIES,
            captioned_images(self.text_encoder, self.tokenizer([""])[0]),
        )
        torch.manual_seed(0)
        unet, seconds, start = UNet(config), 0.0, perf_counter()
        parameters = sum(p.numel() for p in unet.parameters())
        for state in tqdm(train(unet, loss, data, settings), desc=name, total=steps):
            if (state.step & (state.step - 1)) == 0 and state.step >= 16 or state.step == steps:
                seconds += perf_counter() - start
                right = self.score(state.ema, decode)
                low, high = bootstrap_interval(
                    lambda rows: float(rows.float().mean()),
                    right,
                    generator=torch.Generator().manual_seed(0),
                )
                yield {
                    "racer": name,
                    "parameters": parameters,
                    "steps": state.step,
                    "seconds": seconds,
                    "right": float(right.float().mean()),
                    "low": low,
                    "high": high,
                    "all": int(right.all(dim=1).sum()),
                }
                start = perf_counter()


def main() -> None:
    """Run both, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="of each racer")
    parser.add_argument("--samples", type=int, default=40, help="captions to draw at each look")
    parser.add_argument("--save", action="store_true", help=f"keep the rows in {FILE}")
    arguments = parser.parse_args()

    course = Course(PICTURES, arguments.samples)
    rows = [row for name in RACERS for row in course.run(name, arguments.steps)]
    if arguments.save:
        kept = {"samples": arguments.samples, "machine": machine(Accelerator()), "rows": rows}
        kept["threads"] = torch.get_num_threads()
        write_json(locate("postcards") / FILE, kept)
    head = "racer", "parameters", "steps", "seconds", "attributes right", "95 %", "all five"
    lines = [
        [
            row["racer"],
            f"{row['parameters']:,}",
            f"{row['steps']:,}",
            f"{row['seconds']:.0f}",
            f"{row['right']:.0%}",
            f"{row['low']:.0%} to {row['high']:.0%}",
            f"{row['all']} of {arguments.samples}",
        ]
        for row in rows
    ]
    print(*table(head, "lrrrrlr", lines), sep="\n")


if __name__ == "__main__":
    main()
