"""The command `minisd`: train, generate, evaluate, info."""

import sys
import warnings
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from minisd.schedulers import SAMPLERS

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, sample and measure the models of the book.",
)


Sampler = StrEnum("Sampler", {name: name for name in SAMPLERS})


class Precision(StrEnum):
    """What the networks compute in while training."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


ModelArgument = Annotated[str, typer.Argument(help="A bundled checkpoint, a folder or a hub id.")]
SeedOption = Annotated[int, typer.Option(min=0, help="The same seed gives the same result.")]
StepsOption = Annotated[
    int, typer.Option(min=1, help="Steps per image: one network call each, two for heun.")
]
SamplerOption = Annotated[Sampler, typer.Option(help="The scheduler that draws.")]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="The recipe; `minisd info` lists them.")],
    out: Annotated[Path | None, typer.Option(help="Folder; runs/RECIPE by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Other than the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Other than the recipe's.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    precision: Annotated[Precision, typer.Option(help="Mixed precision.")] = Precision.no,
) -> None:
    """Train a recipe from nothing, or resume it."""
    from minisd.recipes import find_recipe, run

    found = find_recipe(recipe)
    out = out or Path("runs") / recipe
    loop = run(found, out, steps, seed, resume, precision.value)
    with tqdm(total=steps or found.steps, unit="step", mininterval=1, delay=0.1) as bar:
        for step in loop:
            bar.update(step.step - bar.n)
            if step.log:
                bar.set_postfix(loss=f"{step.log[-1]['loss']:.4f}", refresh=False)
    done = f"{bar.n} steps done, " if found.steps else ""
    typer.echo(f"{recipe}: {done}saved in {out}")


@app.command()
def generate(
    model: ModelArgument,
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 64,
    out: Annotated[Path, typer.Option("-o", "--out", help="The picture to write.")] = Path(
        "grid.png"
    ),
    seed: SeedOption = 0,
    steps: StepsOption = 50,
    sampler: SamplerOption = Sampler["ddpm"],
) -> None:
    """Draw images and save them as one grid."""
    from minisd.files import replacing, writable_folder
    from minisd.plots import image_grid

    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{out} must end in .png, .jpg or .webp")
    writable_folder(out.parent)
    images = torch.cat(list(draw(model, n, seed, steps, sampler)))
    with replacing(out) as temporary:
        image_grid(images).save(temporary)
    typer.echo(f"{out}: {n} images of {model}, seed {seed}, {steps} steps of {sampler.value}")


@app.command()
def evaluate(
    model: ModelArgument,
    n: Annotated[int, typer.Option("-n", min=2, help="How many samples to score.")] = 5000,
    seed: SeedOption = 0,
    steps: StepsOption = 25,
    sampler: SamplerOption = Sampler["ddpm"],
    judge: Annotated[str, typer.Option(help="The judge's checkpoint.")] = "digits-judge",
    save: Annotated[bool, typer.Option("--save", help="Keep the scores in the card.")] = False,
) -> None:
    """Score a model on what it was trained for, as its recipe says."""
    from minisd.cards import add_scores
    from minisd.evaluation import EvaluationSettings
    from minisd.files import read_json
    from minisd.pretrained import locate
    from minisd.recipes import find_recipe

    folder = locate(model)
    recipe = find_recipe(read_json(folder / "training.json")["recipe"])

    def samples() -> torch.Tensor:
        return torch.cat(list(draw(model, n, seed, steps, sampler)))

    settings = EvaluationSettings(samples, n, seed, steps, sampler.value, judge)
    scores = recipe.evaluate(folder, settings)
    for name, value in scores.items():
        typer.echo(f"{name}: {value}")
    if save:
        add_scores(folder, scores)


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint; without one, list all.")
    ] = None,
) -> None:
    """Show a model's card, or list the bundled checkpoints and the recipes."""
    from minisd.pretrained import bundled, locate
    from minisd.recipes import RECIPES

    if model is not None:
        card = locate(model) / "card.md"
        if not card.is_file():
            raise ValueError(f"{model} has no card.md")
        typer.echo(card.read_text(encoding="utf-8"))
        return
    for recipe in RECIPES.values():
        shipped = "bundled" if recipe.name in bundled() else "not bundled"
        typer.echo(f"{recipe.name:16} {shipped:12} {recipe.summary}")


def draw(model: str, n: int, seed: int, steps: int, sampler: Sampler) -> Iterator[torch.Tensor]:
    """Sample n images from a trained U-Net, on the best device here, with a progress bar."""
    from minisd.pipeline import sample
    from minisd.unet import UNet

    device = best_device()
    unet = UNet.from_pretrained(model).to(device)
    scheduler = SAMPLERS[sampler.value].from_pretrained(model)
    generator = torch.Generator(device).manual_seed(seed)
    with tqdm(total=n, unit="image", delay=0.1) as bar:
        for batch in sample(unet, scheduler, n, steps, generator):
            yield batch.cpu()
            bar.update(len(batch))


def best_device() -> torch.device:
    """Return cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def main() -> None:
    """Run the command; what goes wrong is told in one line, with exit status 1."""
    warnings.showwarning = lambda message, *_: tell("note", message)
    try:
        app()
    except (ValueError, FloatingPointError, OSError) as error:
        tell("error", error)
        sys.exit(1)


def tell(kind: str, message: object) -> None:
    """Print one line on stderr, whatever line breaks the message has."""
    print(f"minisd: {kind}: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    main()
