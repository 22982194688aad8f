"""The command `minisd`: train, generate, evaluate, info."""

import sys
import warnings
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from tqdm import tqdm

from minisd.schedulers import SAMPLERS

if TYPE_CHECKING:
    from PIL import Image

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
SamplerOption = Annotated[
    Sampler | None, typer.Option(help="The scheduler that draws; the model's own by default.")
]
GuidanceOption = Annotated[
    float, typer.Option(help="How closely to follow the prompt; 1 is no guidance.")
]


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
    everything: Annotated[
        bool, typer.Option("--all", help="Train what it builds on before, and use that.")
    ] = False,
) -> None:
    """Train a recipe from nothing, or resume it."""
    from minisd.lab.recipes import find_recipe, run
    from minisd.pretrained import preferring

    wanted = find_recipe(recipe)
    out = out or Path("runs") / recipe
    plan = [(wanted, out)]
    if everything:
        plan = [(find_recipe(name), out.parent / name) for name in wanted.requires] + plan
    with preferring(out.parent) if everything else nullcontext():
        for part, folder in plan:
            wish = steps if part.steps or part is wanted else None
            loop = run(part, folder, wish, seed, resume, precision.value)
            with tqdm(total=wish or part.steps, unit="step", mininterval=1, delay=0.1) as bar:
                for step in loop:
                    bar.update(step.step - bar.n)
                    if step.log:
                        bar.set_postfix(loss=f"{step.log[-1]['loss']:.4f}", refresh=False)
            done = f"{bar.n} steps done, " if part.steps else ""
            typer.echo(f"{part.name}: {done}saved in {folder}")


@app.command()
def generate(
    model: ModelArgument,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="What to draw, for a model that takes prompts.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", min=1, help="How many images; 1 of each prompt, else 64.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The picture to write.")] = Path(
        "grid.png"
    ),
    seed: SeedOption = 0,
    steps: StepsOption = 25,
    sampler: SamplerOption = None,
    guidance: GuidanceOption = 4.0,
    negative: Annotated[str, typer.Option(help="What to keep away from.")] = "",
    image: Annotated[
        Path | None, typer.Option(help="A picture to begin from, in place of noise.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="How much of --image is lost: above 0, at most 1.")
    ] = 0.8,
    mask: Annotated[
        Path | None, typer.Option(help="White where --image is to be drawn anew.")
    ] = None,
    semantic_map: Annotated[
        Path | None, typer.Option("--map", help="What is where, in the colours of chapter 11.")
    ] = None,
    grid: Annotated[bool, typer.Option(help="One sheet, or a file for each image.")] = True,
    animate: Annotated[
        Path | None, typer.Option(help="A GIF of what the model expects at each step.")
    ] = None,
) -> None:
    """Draw images, and save them as one grid, or one by one; each prompt has a row of its own."""
    from minisd.book.plots import image_grid, save_gif
    from minisd.device import best_device
    from minisd.files import replacing, writable_folder
    from minisd.lab.artist import Artist
    from minisd.maps import read_map

    if semantic_map is not None:
        prompts = prompts or [""]  # the map may be all that is said
    n = n or (1 if prompts else 64)
    for path, kinds in ((out, (".png", ".jpg", ".jpeg", ".webp")), (animate, (".gif",))):
        if path is not None:
            if path.suffix.lower() not in kinds:
                raise ValueError(f"{path} must end in {' or '.join(kinds)}")
            writable_folder(path.parent)
    artist = Artist(model, sampler and sampler.value, best_device())
    generator = torch.Generator(artist.device).manual_seed(seed)
    asked, columns = "", None
    if prompts:
        asked = f": {', '.join(map(repr, prompts))}"
        columns = n if len(prompts) > 1 else None  # a row for each prompt
        prompts = [prompt for prompt in prompts for _ in range(n)]
        n = len(prompts)
    editing = {}
    if image is not None or mask is not None:
        editing = dict(image=open_image(image), strength=strength, mask=open_image(mask))
    if semantic_map is not None:
        editing["maps"] = read_map(open_image(semantic_map)).expand(n, -1, -1)
    if animate is None:
        batches = artist.draw(
            prompts, n, steps, generator, guidance, negative, batch_size=64, **editing
        )
        images = []
        with tqdm(total=n, unit="image", delay=0.1) as bar:
            for batch in batches:
                images.append(batch)
                bar.update(len(batch))
        images = torch.cat(images)
    else:
        states = artist.states(prompts, n, steps, generator, guidance, negative, **editing)
        states = list(tqdm(states, total=steps, unit="step", delay=0.1))
        frames = [image_grid(artist.decode(state.x_start, **editing), columns) for state in states]
        images = artist.decode(states[-1].x, **editing).cpu()
        save_gif(animate, frames)
    sheets = [images] if grid else images.split(1)
    for i, sheet in enumerate(sheets):
        path = out if len(sheets) == 1 else out.with_stem(f"{out.stem}-{i}")
        scale, gap = (4, 0) if len(sheet) == 1 else (2, 2)
        with replacing(path) as temporary:
            image_grid(sheet, columns if grid else None, scale, gap).save(temporary)
    what = f"{n} image{'s' * (n > 1)} of {model}{asked}"
    typer.echo(f"{out}: {what}, seed {seed}, {steps} steps of {artist.sampler}")


@app.command()
def evaluate(
    model: ModelArgument,
    n: Annotated[int | None, typer.Option("-n", min=2, help="How many samples to score.")] = None,
    seed: SeedOption = 0,
    steps: StepsOption = 25,
    sampler: SamplerOption = None,
    guidance: GuidanceOption = 4.0,
    judge: Annotated[
        str | None, typer.Option(help="The judge's checkpoint, in place of the recipe's.")
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the scores in the card.")] = False,
    only_speed: Annotated[
        bool, typer.Option("--speed", help="Only time it: seconds per picture.")
    ] = False,
) -> None:
    """Score a model on what it was trained for, as its recipe says.

    What is kept with --save includes the seconds per picture, if the model draws.
    """
    from minisd.files import read_json
    from minisd.lab.cards import add_scores
    from minisd.lab.evaluation import EvaluationSettings, speed
    from minisd.lab.recipes import find_recipe
    from minisd.pretrained import locate

    folder = locate(model)
    recipe = find_recipe(read_json(folder / "training.json")["recipe"])
    settings = EvaluationSettings(
        n or recipe.samples, seed, steps, sampler and sampler.value, guidance, judge
    )
    scores = {} if only_speed else recipe.evaluate(folder, settings)
    if save or only_speed:
        scores |= speed(folder, settings)
    if not scores:
        raise ValueError(f"{model} does not draw: there is nothing to time")
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
    from minisd.lab.recipes import RECIPES
    from minisd.pretrained import bundled, locate

    if model is not None:
        card = locate(model) / "card.md"
        if not card.is_file():
            raise ValueError(f"{model} has no card.md")
        typer.echo(card.read_text(encoding="utf-8"))
        return
    for recipe in RECIPES.values():
        shipped = "bundled" if recipe.name in bundled() else "not bundled"
        typer.echo(f"{recipe.name:20} {shipped:12} {recipe.summary}")


def open_image(path: Path | None) -> "Image.Image | None":
    """Read a picture, or raise ValueError that says which cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        return None if path is None else Image.open(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture that can be read") from None


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
