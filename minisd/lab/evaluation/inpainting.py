"""Chapter 11: how good is inpainting? Another subject in every postcard, the rest as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.classifier import Classifier, classify
from minisd.data.postcards import ATTRIBUTES, LAYERS, Postcards, Scenes, masks
from minisd.data.postcards.captions import canonical
from minisd.device import in_batches
from minisd.editing import paste
from minisd.intervals import bootstrap_interval
from minisd.lab.artist import Artist
from minisd.lab.evaluation.postcards import reconstructed
from minisd.lab.evaluation.settings import (
    EVERYTHING,
    POSTCARDS_JUDGE,
    UNSEEN_SEED,
    EvaluationSettings,
)
from minisd.lab.scores import Score, Scores, share_of
from minisd.progress import progress
from minisd.stable_diffusion import StableDiffusionPipeline

SUBJECT = "inpainting, another subject"
ERROR = "inpainting, error outside of the mask"  # root mean square; the range of a pixel is 1
JUMP = "inpainting, jump across the edge of the mask"  # mean difference; the range is 1


def evaluate_inpainting(model: str | Path, settings: EvaluationSettings) -> Scores:
    """Score inpainting: in each of n unseen postcards, another subject instead of its own.

    The mask is a box around both subjects; everything outside of it should stay as it is. Before
    its pixels are put back, the decoder has changed them: the error is compared with that of the
    autoencoder alone, when nothing is drawn. The jump of the pixels across the edge of the mask is
    compared with that in the original, and with that of a picture that was drawn without its
    surroundings and pasted. Raises ValueError for a model that does not read prompts.
    """
    name = settings.judge or POSTCARDS_JUDGE
    judge, artist = Classifier.from_pretrained(name), Artist(str(model), settings.sampler)
    if artist.pipeline is None:
        raise ValueError(f"{model} does not read prompts: inpainting needs a text-to-image model")
    pipeline, vae = artist.pipeline, artist.pipeline.vae
    pipeline.scheduler = artist.scheduler
    generator = torch.Generator().manual_seed(settings.seed)
    data = Postcards("test", settings.n, seed=UNSEEN_SEED)
    asked, images = other_subjects(data.scenes, generator), data.images()
    boxes = boxes_around(data.scenes, asked, vae.config.downscale)
    jobs = progress(zip(images, boxes, asked, strict=True), total=settings.n, delay=1)
    latents = [
        inpaint(pipeline, image, box, canonical(scene), settings, generator)
        for image, box, scene in jobs
    ]
    drawn = in_batches(lambda part: 2 * pipeline.decode(part) - 1, torch.cat(latents))
    alone = 2 * draw(
        pipeline, [*map(canonical, asked)], settings, generator,
        height=images.shape[2], width=images.shape[3], output_type="pt",
    ) - 1  # fmt: skip
    pasted, cut_out = (paste(each, images, boxes) for each in (drawn, alone))
    labels = data.labels.clone()
    labels[:, 0] = asked.subject
    right = classify(judge, pasted) == labels
    errors = torch.stack(  # (n,3), squared
        [
            ((each - images) / 2 * (1 - boxes)).square().sum((1, 2, 3))
            for each in (drawn, reconstructed(vae, images), pasted)
        ],
        dim=1,
    )
    jumps = torch.stack([seam(each, boxes) for each in (pasted, images, cut_out)], dim=1)  # (n,3)

    def ratio(rows: Tensor) -> float:
        ours, theirs, _ = rows.sum(dim=0)
        return float(ours / theirs)

    low, high = (value**0.5 for value in bootstrap_interval(ratio, errors, generator=generator))
    more = Score(ratio(errors) ** 0.5, low, high, settings.n, digits=2)
    jump_interval = bootstrap_interval(ratio, jumps, generator=generator)
    roughness = Score(ratio(jumps), *jump_interval, n=settings.n, digits=2)
    rms = (errors.sum(dim=0) / (3 * (1 - boxes).sum())).sqrt()
    decoded, least, after = (Score(float(value), n=settings.n) for value in rms)
    jump, original, alone_pasted = (
        Score(float(value), n=settings.n) for value in jumps.mean(dim=0)
    )
    return {
        SUBJECT: share_of(right[:, 0]),
        f"inpainting, {EVERYTHING}": share_of(right.all(dim=1)),
        ERROR: after,
        f"{ERROR}, before the pixels are put back": decoded,
        f"{ERROR}, of the autoencoder alone": least,
        f"{ERROR}, before, over that of the autoencoder": more,
        JUMP: jump,
        f"{JUMP}, of the original": original,
        f"{JUMP}, over that of the original": roughness,
        f"{JUMP}, drawn alone and pasted": alone_pasted,
    }


def inpaint(
    pipeline: StableDiffusionPipeline,
    image: Tensor,
    box: Tensor,
    prompt: str,
    settings: EvaluationSettings,
    generator: torch.Generator,
) -> Tensor:
    """Draw what the prompt says inside a box (1,h,w) of an image (3,h,w) in [-1,1].

    Return the latents (1,c,h/8,w/8): in the decoded picture, no pixel is put back.
    """
    editing = dict(image=(image + 1) / 2, strength=1.0, mask=box)
    return draw(pipeline, prompt, settings, generator, output_type="latent", **editing)


def draw(
    pipeline: StableDiffusionPipeline,
    prompt: str | list[str],
    settings: EvaluationSettings,
    generator: torch.Generator,
    **others: Any,
) -> Tensor:
    """Return what the pipeline draws, in the steps and with the guidance of the settings."""
    images = pipeline(
        prompt,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=generator,
        **others,
    ).images
    assert isinstance(images, Tensor), "choose the output_type 'pt' or 'latent'"
    return images


def seam(images: Tensor, masks: Tensor) -> Tensor:
    """Return the mean jump (n,) of images (n,c,h,w) in [-1,1] across the edge of masks (n,1,h,w).

    A jump is the difference, as a share of the range, of two neighbouring pixels of which one is in
    the mask. An image without an edge has none: nan.
    """
    jumps, edges = 0, 0
    for dim in (2, 3):
        edge = masks.diff(dim=dim).abs()  # 1 between two such pixels
        jumps = jumps + (images.diff(dim=dim).abs() / 2 * edge).mean(dim=1).sum((1, 2))
        edges = edges + edge.sum((1, 2, 3))
    return jumps / edges


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
