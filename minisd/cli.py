"""The command `minisd`: train, generate, evaluate, info."""

import io
import os
import sys
import warnings
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import Tensor

from minisd import device
from minisd.progress import progress
from minisd.schedulers import SAMPLERS

if TYPE_CHECKING:
    from minisd.lab.artist import Artist

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, sample and measure the models of the book.",
)


class Precision(StrEnum):
    """What the networks compute in while training."""

    auto = "auto"
    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


class Dtype(StrEnum):
    """What the networks compute in while drawing."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


def expanded(text: str) -> Path:
    """Read a path, in which "~" is the home folder also where no shell has said so."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # there is no such user
        raise typer.BadParameter(f"{text}: {error}") from None


def whole_seed(text: str | int) -> int:
    """Read a seed; the message for any other text says which seeds there are."""
    try:
        device.seeded(int(text))
    except ValueError:
        allowed = f"a whole number between 0 and {device.MAX_SEED}"
        raise typer.BadParameter(f"the seed must be {allowed}, got {text}") from None
    return int(text)


def known_sampler(text: str) -> str:
    """Read the name of a sampler; the message for any other text lists them all."""
    if text not in SAMPLERS:
        known = ", ".join(map(repr, SAMPLERS))
        raise typer.BadParameter(f"{text!r} is not one of {known}.")
    return text


SEED: dict[str, Any] = {"parser": whole_seed, "metavar": "INTEGER"}
PATH: dict[str, Any] = {"parser": expanded, "metavar": "PATH"}
SAMPLER: dict[str, Any] = {"parser": known_sampler, "metavar": f"<{'|'.join(SAMPLERS)}>"}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")  # the kinds of files that can be written

ModelArgument = Annotated[str, typer.Argument(help="A bundled checkpoint, a folder or a hub id.")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same result.", **SEED)]
StepsOption = Annotated[
    int, typer.Option(min=1, help="Steps per image: one network call each, two for heun.")
]
SamplerOption = Annotated[
    str | None,
    typer.Option(help="The scheduler that draws; the model's own by default.", **SAMPLER),
]
GuidanceOption = Annotated[
    float, typer.Option(help="How closely to follow the prompt; 1 is no guidance.")
]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="The recipe; `minisd info` lists them.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder; runs/RECIPE by default.", **PATH)
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Other than the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Other than the recipe's.", **SEED)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    precision: Annotated[
        Precision,
        typer.Option(help="Mixed precision; auto times some steps and takes the fastest."),
    ] = Precision.auto,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="The weights' order in memory; auto chooses it.")
    ] = False,
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
            loop = run(part, folder, wish, seed, resume, precision.value, channels_last)
            taken = 0
            with progress(total=wish or part.steps, unit="step", mininterval=1, delay=0.1) as bar:
                for step in loop:
                    bar.update(step.step - taken)
                    taken = step.step
                    if step.log:
                        bar.set_postfix(loss=f"{step.log[-1]['loss']:.4f}", refresh=False)
            done = f"{taken} steps done, " if part.steps else ""
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
    out: Annotated[Path, typer.Option("-o", "--out", help="The picture to write.", **PATH)] = Path(
        "grid.png"
    ),
    seed: SeedOption = 0,
    steps: StepsOption = 25,
    sampler: SamplerOption = None,
    guidance: GuidanceOption = 4.0,
    negative: Annotated[str, typer.Option(help="What to keep away from.")] = "",
    image: Annotated[
        Path | None, typer.Option(help="A picture to begin from, instead of noise.", **PATH)
    ] = None,
    strength: Annotated[
        float, typer.Option(help="How much of --image is lost: above 0, at most 1.")
    ] = 0.8,
    mask: Annotated[
        Path | None, typer.Option(help="White where --image is to be drawn anew.", **PATH)
    ] = None,
    semantic_map: Annotated[
        Path | None,
        typer.Option("--map", help="What is where, in the colours of chapter 11.", **PATH),
    ] = None,
    grid: Annotated[bool, typer.Option(help="One sheet, or a file for each image.")] = True,
    animate: Annotated[
        Path | None, typer.Option(help="A GIF of what the model expects at each step.", **PATH)
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(help="Precision. On a GPU float16 takes half the memory; a CPU refuses it."),
    ] = Dtype.float32,
    variant: Annotated[
        str | None, typer.Option(help="The files to load, like fp16: half the download.")
    ] = None,
) -> None:
    """Draw images, and save them as one grid, or one by one; each prompt has a row of its own."""
    from minisd.book.plots import image_grid, save_gif
    from minisd.files import replacing
    from minisd.lab.artist import Artist

    if semantic_map is not None:
        prompts = prompts or [""]  # a map needs no words
    n = n or (1 if prompts else 64)
    columns = n if prompts and len(prompts) > 1 else None  # a row for each prompt
    asked = f": {', '.join(map(repr, prompts))}" if prompts else ""
    each = [prompt for prompt in prompts for _ in range(n)] if prompts else None
    n = len(each) if each else n
    files = [out] if grid or n == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(n)]
    for path in files:
        check_output(path, PICTURES)
    if animate is not None:
        check_output(animate, (".gif",))
    wish = dict(prompts=each, n=n, steps=steps, generator=device.seeded(seed), guidance=guidance)
    wish |= dict(negative_prompt=negative) | read_pictures(image, mask, semantic_map, n)
    if image is not None:
        wish["strength"] = strength
    precision = getattr(torch, dtype.value)
    artist = Artist(model, sampler, device.best_device(), precision, variant)
    if animate is None:
        images = draw_images(artist, wish)
    else:
        images, frames = draw_frames(artist, wish)
        save_gif(animate, [image_grid(frame, columns) for frame in frames])
    for sheet, path in zip([images] if grid else images.split(1), files, strict=True):
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

    folder = locate(model, "", ("training.json",))
    name = read_json(folder / "training.json").get("recipe")
    if not isinstance(name, str):
        raise ValueError(f"{folder / 'training.json'} names no recipe, which says how to score")
    recipe = find_recipe(name)
    settings = EvaluationSettings(n or recipe.samples, seed, steps, sampler, guidance, judge)
    scores = {} if only_speed else recipe.evaluate(model, settings)
    if save or only_speed:
        scores |= speed(model, settings)
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
        card = locate(model, "", ("card.md",)) / "card.md"
        if not card.is_file():
            raise ValueError(f"{model} has no card.md")
        typer.echo(card.read_text(encoding="utf-8"))
        return
    for recipe in RECIPES.values():
        shipped = "bundled" if recipe.name in bundled() else "not bundled"
        typer.echo(f"{recipe.name:20} {shipped:12} {recipe.summary}")


def check_output(path: Path, kinds: tuple[str, ...]) -> None:
    """Raise ValueError unless a picture of one of these kinds can be written to `path`."""
    from minisd.files import writable_folder

    if path.suffix.lower() not in kinds:
        raise ValueError(f"{path} must end in {' or '.join(kinds)}")
    writable_folder(path.parent)
    try:
        os.stat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"cannot write to {path}: {error.strerror}") from None
    if path.is_dir():
        raise ValueError(f"cannot write to {path}: it is a folder")
    if not os.access(path, os.W_OK):
        raise ValueError(f"cannot write to {path}: it is read-only")


def read_pictures(
    image: Path | None, mask: Path | None, semantic_map: Path | None, n: int
) -> dict[str, Any]:
    """Read the pictures that n images begin from; raises ValueError that names a broken file."""
    from minisd.data.images import open_picture
    from minisd.maps import read_map

    settings: dict[str, Any] = {}
    if image is not None:
        settings["image"] = open_picture(image)
    if mask is not None:
        settings["mask"] = open_picture(mask, ground="black")
    if semantic_map is not None:
        settings["maps"] = read_map(open_picture(semantic_map)).expand(n, -1, -1)
    return settings


def draw_images(artist: "Artist", wish: dict[str, Any]) -> Tensor:
    """Draw all images, batch by batch: (n,c,h,w) in [-1,1]."""
    images = []
    with progress(total=wish["n"], unit="image", delay=0.1) as bar:
        for batch in artist.draw(**wish):
            images.append(batch)
            bar.update(len(batch))
    return torch.cat(images)


def draw_frames(artist: "Artist", wish: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """Draw all images at once; return them, and those that the model expected at each step."""
    states = list(progress(artist.states(**wish), total=wish["steps"], unit="step", delay=0.1))
    kept = {key: wish[key] for key in ("image", "mask") if key in wish}
    frames = [artist.decode(state.x_start, **kept) for state in states]
    return artist.decode(states[-1].x, **kept).cpu(), frames


def main() -> None:
    """Run the command; what goes wrong is told in one line, with exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the console cannot show is escaped
            stream.reconfigure(errors="backslashreplace")
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
