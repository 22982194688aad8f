"""Chapter 11: how good is inpainting? Another subject in every postcard, the rest as it was."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minisd.artist import Artist
from minisd.data.postcards import ATTRIBUTES, LAYERS, Postcards, Scenes, masks
from minisd.data.postcards.captions import canonical
from minisd.evaluation import (
    POSTCARDS_JUDGE,
    UNSEEN_SEED,
    EvaluationSettings,
    Scores,
    in_words,
    reconstructed,
)
from minisd.metrics import Accuracy, Judge, bootstrap_interval, judge_answers
from minisd.stable_diffusion import StableDiffusionPipeline


def evaluate_inpainting(folder: Path, settings: EvaluationSettings) -> Scores:
    """Score inpainting: in each of n unseen postcards, another subject instead of its own.

    The mask is a box around both; all else is to stay. Outside of it, the distance from the
    original is compared with what the autoencoder alone, without any drawing, changes there.
    """
    name = settings.judge or POSTCARDS_JUDGE
    judge, artist = Judge.from_pretrained(name), Artist(str(folder), settings.sampler)
    pipeline, vae = artist.pipeline, artist.pipeline.vae
    pipeline.scheduler = artist.scheduler
    generator = torch.Generator().manual_seed(settings.seed)
    data = Postcards("test", settings.n, seed=UNSEEN_SEED)
    asked, images = other_subjects(data.scenes, generator), data.images()
    boxes = boxes_around(data.scenes, asked, vae.config.downscale)
    jobs = tqdm(zip(images, boxes, asked, strict=True), total=settings.n, delay=1)
    drawn = [
        inpaint(pipeline, image, box, canonical(scene), settings, generator)
        for image, box, scene in jobs
    ]
    drawn = torch.cat(drawn)
    decoded = reconstructed(vae, images)
    labels = data.labels.clone()
    labels[:, 0] = asked.subject
    right = judge_answers(judge, drawn) == labels
    errors = torch.stack(  # (n,2): of what was drawn, and of the autoencoder
        [((each - images).square() * (1 - boxes)).sum((1, 2, 3)) for each in (drawn, decoded)],
        dim=1,
    )

    def ratio(rows: Tensor) -> float:
        ours, least = rows.sum(dim=0).sqrt()
        return float(ours / least)

    low, high = bootstrap_interval(ratio, errors, generator=generator)
    ours, least = (errors.sum(dim=0) / (3 * (1 - boxes).sum())).sqrt() / 2  # of 1
    return {
        f"inpainting, another subject, {settings.n:,} postcards": in_words(
            Accuracy(int(right[:, 0].sum()), settings.n)
        ),
        "inpainting, all attributes": in_words(Accuracy(int(right.all(1).sum()), settings.n)),
        "inpainting, error outside of the mask": (
            f"{ours:.4f} of 1, {ratio(errors):.2f} times that of the autoencoder alone, {least:.4f}"
            f" (95 % interval {low:.2f} to {high:.2f})"
        ),
    }


def inpaint(
    pipeline: StableDiffusionPipeline,
    image: Tensor,
    box: Tensor,
    prompt: str,
    settings: EvaluationSettings,
    generator: torch.Generator,
) -> Tensor:
    """Draw what the prompt says inside a box (1,h,w) of an image (3,h,w): (1,3,h,w) in [-1,1]."""
    out = pipeline(
        prompt,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=generator,
        output_type="pt",
        image=(image + 1) / 2,
        strength=1.0,
        mask=box,
    )
    return 2 * out.images - 1


def other_subjects(scenes: Scenes, generator: torch.Generator) -> Scenes:
    """Return the scenes with another subject each, one that its ground allows."""
    changed = []
    for scene in scenes:
        fit = [
            subject
            for subject in ATTRIBUTES["subject"]
            if subject != scene.subject
            and (subject != "boat" or scene.ground == "sea")
            and not (scene.trees and subject.endswith("tree"))
        ]
        chosen = int(torch.randint(len(fit), (), generator=generator))
        changed.append(replace(scene, subject=fit[chosen]))
    return Scenes.of(changed)


def boxes_around(before: Scenes, after: Scenes, cell: int) -> Tensor:
    """Return boxes (n,1,64,64), 1 inside, of whole cells around the subjects of two scenes."""
    subject = LAYERS.index("subject")
    there = (masks(before) == subject) | (masks(after) == subject)
    there = F.max_pool2d(there[:, None].float(), cell)  # (n,1,8,8)
    rows, columns = there.amax(dim=3), there.amax(dim=2)
    for line in (rows, columns):  # from the first to the last
        line.copy_(torch.minimum(line.cummax(-1).values, line.flip(-1).cummax(-1).values.flip(-1)))
    box = rows[..., :, None] * columns[..., None, :]
    return box.repeat_interleave(cell, dim=2).repeat_interleave(cell, dim=3)
