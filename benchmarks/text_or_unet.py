"""Text encoder or U-Net: where is a second of training better spent? Imagen's question, small.

    python benchmarks/text_or_unet.py [--seconds 90] [--seeds 3] [--save]

Latent diffusion is trained on postcards, from nothing, with text encoders of two depths and U-Nets
of two widths, by several seeds, all at the same cost. The encoders are CLIP's, whole or cut before
its first layer, and frozen; their work in every step counts. How long a step takes is measured
first, the pairs taking turns, and gives each of them its number of steps. Prints one table. With
`--save` the rows are kept beside the checkpoint `postcards`, as `text_or_unet.json`, for chapter
12; an interrupted run goes on from there. Nothing else should run on the machine meanwhile.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from tqdm import tqdm

from minisd import CLIPTextModel, UNet, UNetConfig
from minisd.classifier import Classifier, classify
from minisd.conditioning import captioned_images
from minisd.data.captioned import Captioned, Latents
from minisd.data.postcards import JUDGED, Postcards
from minisd.device import best_device, device_name, in_batches
from minisd.files import read_json
from minisd.lab.evaluation import POSTCARDS_JUDGE, SPLITS, UNSEEN_SEED
from minisd.lab.recipes import (
    POSTCARDS_PROBABILITIES,
    POSTCARDS_SAMPLER,
    POSTCARDS_SCHEDULER,
    frozen_parts,
)
from minisd.lab.results import Results, table
from minisd.losses import diffusion_loss
from minisd.pipeline import ClassifierFreeGuidance, denoise
from minisd.pretrained import locate
from minisd.training import TrainingSettings, TrainingStep, train

FILE = "text_or_unet.json"
LAYERS = (0, 3)  # of the text encoder; 3 is all of it
WIDTHS = ((16, 32), (32, 64))  # of the U-Net
PICTURES, BATCH = 4000, 32
ROUNDS, TIMED = 7, 10  # steps that are timed
DRAW_STEPS, DRAW_SCALE = 10, 3.0


def cut(text_encoder: CLIPTextModel, layers: int) -> CLIPTextModel:
    """Return the encoder without what comes after its first layers; the last norm stays."""
    shorter = copy.deepcopy(text_encoder)
    shorter.blocks = shorter.blocks[:layers]
    return shorter


def make(width: tuple[int, int], seed: int) -> UNet:
    """Return an untrained U-Net, a function of its seed."""
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        return UNet(replace(UNetConfig.POSTCARDS, channels=width))


def learn(
    unet: UNet, text_encoder: CLIPTextModel, empty_ids, dataset, steps: int, seed: int
) -> Iterator[TrainingStep]:
    """Train for some steps, yielding each."""
    settings = TrainingSettings(
        steps,
        BATCH,
        learning_rate=4e-3,
        warmup_steps=max(1, steps // 10),
        ema_decay=0.99,
        seed=seed,
        optimizer="Muon",
    )
    prepare = captioned_images(text_encoder, empty_ids)
    loss = diffusion_loss(POSTCARDS_SCHEDULER, POSTCARDS_PROBABILITIES, prepare)
    yield from train(unet, loss, dataset, settings)


def seconds_per_step(runs: dict[tuple, Iterator[TrainingStep]]) -> dict[tuple, float]:
    """Let trainings take turns, and return the median time of a step of each.

    So a machine that is faster at some times than at others treats all of them alike.
    """
    times: dict[tuple, list[float]] = {arm: [] for arm in runs}
    for _ in range(ROUNDS):
        for arm, run in runs.items():
            start = time.perf_counter()
            for _ in range(TIMED):
                next(run)
            times[arm].append((time.perf_counter() - start) / TIMED)
    return {arm: statistics.median(taken) for arm, taken in times.items()}


@torch.no_grad()
def score(unet, text_encoder, tokenizer, vae, judge, n: int) -> dict:
    """Count, for n full captions of each kind, the pictures and the attributes that are right."""
    result, device = {}, next(unet.parameters()).device
    empty = text_encoder(tokenizer([""]).to(device))
    for split in SPLITS:
        data = Postcards(split, n, seed=UNSEEN_SEED)
        noise = torch.randn((n, 4, 8, 8), generator=torch.Generator().manual_seed(0)).to(device)
        context = text_encoder(tokenizer(data.full_captions).to(device))
        guided = ClassifierFreeGuidance(unet, empty, DRAW_SCALE)
        *_, last = denoise(guided, POSTCARDS_SAMPLER, noise, DRAW_STEPS, context=context)
        images = in_batches(vae.decode, last.x).clamp(-1, 1).cpu()
        right = classify(judge, images) == data.labels
        result[split] = {"all": int(right.all(dim=1).sum())}
        result[split] |= dict(zip(JUDGED, right.sum(dim=0).tolist(), strict=True))
    return result


def main() -> None:
    """Train and score all arms, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90, help="of training, for each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=100, help="captions of each kind")
    parser.add_argument("--save", action="store_true", help=f"keep the rows in {FILE}")
    arguments = parser.parse_args()

    device = best_device()
    tokenizer, text_encoder, vae = frozen_parts()
    text_encoder, vae = text_encoder.to(device), vae.to(device)
    judge, empty_ids = Classifier.from_pretrained(POSTCARDS_JUDGE), tokenizer([""])[0]
    commits = {
        part: read_json(locate(part) / "training.json")["commit"]
        for part in ("clip-postcards", "postcards-vae")
    }
    about = {"parts": commits, "seconds": arguments.seconds, "samples": arguments.samples}
    path = locate("postcards") / FILE if arguments.save else None
    results = Results(about, path, machine=device_name(device))

    dataset = Latents(Captioned(Postcards("train", PICTURES), tokenizer), vae)
    encoders = {layers: cut(text_encoder, layers) for layers in LAYERS}
    arms = [(layers, width) for width in WIDTHS for layers in LAYERS]
    pace = seconds_per_step(
        {
            (layers, width): learn(
                make(width, 0), encoders[layers], empty_ids, dataset, ROUNDS * TIMED, seed=0
            )
            for layers, width in arms
        }
    )
    done = {(row["layers"], tuple(row["width"]), row["seed"]) for row in results.rows}
    todo = [(*arm, seed) for seed in range(arguments.seeds) for arm in arms]
    for layers, width, seed in tqdm([run for run in todo if run not in done]):
        unet, encoder = make(width, seed), encoders[layers]
        steps = max(1, round(arguments.seconds / pace[layers, width]))
        start = time.perf_counter()
        *_, last = learn(unet, encoder, empty_ids, dataset, steps, seed)
        row = {
            "layers": layers,
            "width": width,
            "seed": seed,
            "steps": steps,
            "seconds": round(time.perf_counter() - start, 2),
            "unet_parameters": sum(p.numel() for p in unet.parameters()),
            "text_parameters": sum(p.numel() for p in encoder.parameters()),
        } | score(last.ema, encoder, tokenizer, vae, judge, arguments.samples)
        results.add(row)

    print(f"{arguments.seconds:g} s of training each, {arguments.samples} captions of each kind")
    lines = []
    for layers, width in arms:
        rows = [r for r in results.rows if (r["layers"], tuple(r["width"])) == (layers, width)]
        asked = len(SPLITS) * len(JUDGED) * arguments.samples
        shares = [sum(row[split][q] for split in SPLITS for q in JUDGED) / asked for row in rows]
        lines.append(
            [
                layers,
                f"{rows[0]['text_parameters']:,}",
                f"{rows[0]['unet_parameters']:,}",
                rows[0]["steps"],
                ", ".join(f"{share:.1%}" for share in shares),
            ]
        )
    head = (
        "text layers",
        "text parameters",
        "U-Net parameters",
        "steps",
        "attributes right, by seed",
    )
    print(*table(head, "rrrrl", lines), sep="\n")


if __name__ == "__main__":
    main()
