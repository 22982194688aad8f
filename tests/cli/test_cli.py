"""The command: what it prints, what it writes, and one clear line for whatever goes wrong."""

import io
import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import tiny_pipeline
from PIL import Image
from tiny import RECIPES as TINY
from tqdm import tqdm

import minisd.cli
import minisd.lab.artist
import minisd.lab.recipes
from minisd import UNet, UNetConfig
from minisd.book.plots import image_grid
from minisd.cli import main
from minisd.data.digits import uci_digits
from minisd.data.postcards import Postcards
from minisd.lab.precision import Way
from minisd.lab.recipes import RECIPES, run
from minisd.maps import MapPipeline, paint_maps
from minisd.pretrained import bundled
from minisd.schedulers import SAMPLERS


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run `minisd ARGUMENTS` in this process, in an empty folder; return status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() replaces it
    for name, recipe in TINY.items():
        short = recipe.changed(steps=10 if recipe.steps else None)
        monkeypatch.setitem(minisd.lab.recipes.RECIPES, name, short)
    monkeypatch.setattr("minisd.device.best_device", lambda: torch.device("cpu"))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["minisd", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as done:
            status = done.code or 0
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def trained(name, tmp_path_factory):
    """Follow a tiny recipe for five steps and return its folder."""
    folder = tmp_path_factory.mktemp("models") / name
    list(run(TINY[name], folder, steps=5))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny DDPM and its scheduler."""
    return trained("tiny-ddpm", tmp_path_factory)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A folder with a tiny U-Net that draws the digit it is asked for."""
    return trained("tiny-class", tmp_path_factory)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A folder with a tiny pipeline from words to pictures, which has learned nothing."""
    folder = tmp_path_factory.mktemp("models") / "words"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """A folder with a tiny pipeline that also reads maps, which has learned nothing."""
    folder = tmp_path_factory.mktemp("models") / "maps"
    tiny_pipeline(MapPipeline, extra_channels=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return trained("tiny-classifier", tmp_path_factory)


@pytest.fixture
def few_digits(monkeypatch):
    monkeypatch.setattr("minisd.lab.evaluation.digits.digits", uci_digits)


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def one_line(status, out, err):
    """Check the form of an error, and return its text."""
    assert status == 1
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("minisd: error: ")
    assert "Traceback" not in err
    return line


# What works


def test_train_saves_a_model_and_says_where(command, tmp_path):
    status, out, _ = command("train", "tiny-classifier", "--out", "there")
    assert status == 0 and out == "tiny-classifier: 10 steps done, saved in there\n"
    assert (tmp_path / "there" / "model.safetensors").exists()


def test_train_takes_what_is_fastest_here_and_says_so(command, monkeypatch):
    """The clock says that each step took ten seconds more than the one before."""
    monkeypatch.setattr("minisd.lab.precision.WORTH_IT", 10)
    monkeypatch.setattr("minisd.lab.precision.ways", lambda *_: [Way("bf16", True), Way()])
    ticks = accumulate(range(10, 90, 10))
    monkeypatch.setattr("minisd.lab.precision.perf_counter", lambda: next(ticks))
    status, out, err = command("train", "tiny-classifier", "--out", "there")
    assert status == 0 and out == "tiny-classifier: 10 steps done, saved in there\n"
    assert err == "minisd: note: bf16, channels last: 30000 ms a step; float32 70000\n"
    assert "--precision bf16 --channels-last`" in Path("there", "card.md").read_text()
    assert command("train", "tiny-classifier", "--out", "there", "--resume") == (0, out, "")


def test_train_takes_what_is_asked_for(command):
    options = ("--precision", "bf16", "--channels-last")
    assert command("train", "tiny-classifier", "--out", "there", *options)[0] == 0
    assert "--precision bf16 --channels-last`" in Path("there", "card.md").read_text()
    line = one_line(*command("train", "tiny-classifier", "--channels-last"))
    assert "auto chooses the order in memory as well" in line


def test_a_bar_shows_how_far_it_is(command, model, monkeypatch):
    bars = []

    def spy(*arguments, **settings):
        bars.append(tqdm(*arguments, **settings))
        return bars[-1]

    monkeypatch.setattr("minisd.cli.progress", spy)
    assert command("train", "tiny-classifier", "--out", "there")[0] == 0
    assert command("generate", model, "-n", 3, "--steps", 1)[0] == 0
    assert [(bar.n, bar.total, bar.unit) for bar in bars] == [(10, 10, "step"), (3, 3, "image")]


def test_train_goes_to_runs_by_default_and_takes_steps_and_seed(command, tmp_path):
    status, out, _ = command("train", "tiny-classifier", "--steps", 5, "--seed", 3)
    assert status == 0 and "5 steps done, saved in runs/tiny-classifier" in out
    training = json.loads((tmp_path / "runs" / "tiny-classifier" / "training.json").read_text())
    assert training["settings"]["steps"] == 5 and training["settings"]["seed"] == 3


def test_train_resumes_only_when_asked(command, tmp_path):
    assert command("train", "tiny-classifier", "--out", "there")[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "there").iterdir()}
    assert "add --resume" in one_line(*command("train", "tiny-classifier", "--out", "there"))
    assert command("train", "tiny-classifier", "--out", "there", "--resume")[0] == 0
    assert before == {p: p.read_bytes() for p in (tmp_path / "there").iterdir()}


def test_generate_writes_one_grid(command, tmp_path, model):
    status, out, _ = command("generate", model, "-n", 5, "--seed", 2, "--steps", 3, "-o", "a.png")
    assert status == 0
    assert out == f"a.png: 5 images of {model}, seed 2, 3 steps of ddpm\n"
    assert tree(tmp_path) == ["a.png"]
    first = np.asarray(Image.open("a.png"))
    assert first.shape == (3 * 36, 2 * 36)  # cells of (14 + 4) pixels, twice as large
    for name, changes in (("b.png", {}), ("c.png", {"--seed": 3}), ("d.png", {"--steps": 4})):
        settings = {"--seed": 2, "--steps": 3} | changes
        arguments = [str(x) for pair in settings.items() for x in pair]
        assert command("generate", model, "-n", 5, *arguments, "-o", name)[0] == 0
        same = np.array_equal(np.asarray(Image.open(name)), first)
        assert same == (name == "b.png")


def test_generate_writes_into_a_folder_to_be_made(command, tmp_path, model):
    out = tmp_path / "new" / "folder" / "grid.jpg"
    assert command("generate", model, "-n", 2, "--steps", 3, "--out", out)[0] == 0
    assert Image.open(out).format == "JPEG"


def test_generate_takes_every_sampler(command, tmp_path, model):
    pictures = set()
    for sampler in SAMPLERS:
        arguments = ("-n", 2, "--steps", 4, "--sampler", sampler, "-o", "grid.png")
        status, stdout, _ = command("generate", model, *arguments)
        assert status == 0 and f"4 steps of {sampler}" in stdout
        pictures.add((tmp_path / "grid.png").read_bytes())
    assert len(pictures) == len(SAMPLERS)


def test_evaluate_scores_a_model_that_draws(command, model, judge, few_digits):
    arguments = ("evaluate", model, "-n", 20, "--steps", 2, "--judge", judge)
    status, out, _ = command(*arguments)
    assert status == 0
    for text in (
        "samples: 20, seed 0, 2 steps of ddpm",
        "against UCI digits",
        "FID ratio: ",
        "FID of real training digits: ",
        "judge confidence: ",
        "class balance: ",
    ):
        assert text in out
    assert command(*arguments)[1] == out
    assert "Not scored yet" in (model / "card.md").read_text()


def test_evaluate_keeps_the_scores_when_asked(command, judge, few_digits):
    status, out, _ = command("evaluate", judge, "--save")
    assert status == 0 and out.startswith("accuracy on unseen digits: ")
    assert "95 % interval" in out and "; n = 360)\ndigits: UCI digits\n" in out
    card = (judge / "card.md").read_text()
    assert all(f"- {line}" in card for line in out.splitlines())


def test_evaluate_times_a_picture_alone_or_with_the_scores(command, model, judge, few_digits):
    status, out, _ = command("evaluate", model, "--steps", 2, "--speed")
    assert status == 0
    assert re.fullmatch(r"seconds per picture: \d+\.\d\d \(one alone, 2 steps of ddpm; .*\)\n", out)
    assert "does not draw" in one_line(*command("evaluate", judge, "--speed"))


def test_a_tokenizer_is_trained_and_scored_like_a_network(command, tmp_path):
    status, out, _ = command("train", "tiny-tokenizer")
    assert status == 0 and out == "tiny-tokenizer: saved in runs/tiny-tokenizer\n"
    status, out, _ = command("evaluate", "runs/tiny-tokenizer", "-n", 30, "--save")
    assert status == 0
    assert out.startswith("vocabulary: 300 tokens\ntokens in unseen captions: ")
    share = "100.00% (95 % interval 88.65 to 100.00%; n = 30)"
    assert f"full captions that decode to themselves: {share}" in out
    card = (tmp_path / "runs" / "tiny-tokenizer" / "card.md").read_text()
    assert all(f"- {line}" in card for line in out.splitlines())
    line = one_line(*command("train", "tiny-tokenizer", "--steps", 5, "--out", "there"))
    assert "made without steps" in line and not (tmp_path / "there").exists()


@pytest.mark.parametrize("name", ["tiny-postcards-judge", "tiny-clip"])
def test_models_of_postcards_are_scored_attribute_by_attribute(command, tmp_path, name):
    assert command("train", name)[0] == 0
    status, out, _ = command("evaluate", f"runs/{name}", "-n", 20, "--save")
    assert status == 0
    for attribute in ("subject", "colour", "sky", "ground", "place"):
        for split in ("seen", "held-out"):
            assert re.search(rf"{attribute}, {split} combinations: \d+.\d\d%.*; n = 20\)", out)
    assert ("recall@1" in out) == (name == "tiny-clip")
    card = (tmp_path / "runs" / name / "card.md").read_text()
    assert all(f"- {line}" in card for line in out.splitlines())


def test_info_lists_recipes_and_checkpoints(command):
    status, out, _ = command("info")
    assert status == 0
    for name in RECIPES:
        (line,) = [line for line in out.splitlines() if line.split()[0] == name]
        assert ("not bundled" in line) == (name not in bundled())


def test_info_shows_a_card(command, model):
    status, out, _ = command("info", model)
    assert status == 0 and out.strip() == (model / "card.md").read_text().strip()


def test_without_arguments_it_explains_itself(command):
    _, out, err = command()
    for name in ("train", "generate", "evaluate", "info"):
        assert name in out + err


@pytest.mark.slow
def test_the_console_script_is_there():
    result = subprocess.run(
        [sys.executable, "-m", "minisd.cli", "info"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "digits-ddpm" in result.stdout, result.stderr


# What does not


def broken(model, tmp_path, file, content):
    """A copy of a model of which one file is something else."""
    folder = tmp_path / "broken"
    folder.mkdir()
    for original in model.iterdir():
        (folder / original.name).write_bytes(original.read_bytes())
    (folder / file).write_bytes(content)
    return folder


def test_a_model_that_no_recipe_made(command, tmp_path, model):
    folder = broken(model, tmp_path, "training.json", b'{"recipe": "alchemy"}')
    assert "unknown recipe 'alchemy'" in one_line(*command("evaluate", folder))
    (folder / "training.json").unlink()
    assert "training.json does not exist" in one_line(*command("evaluate", folder))


@pytest.mark.parametrize("action", ["generate", "evaluate", "info"])
def test_an_unknown_model(command, tmp_path, action, few_digits):
    line = one_line(*command(action, "no-such-model"))
    assert "unknown model 'no-such-model'" in line
    assert all(name in line for name in bundled())
    assert tree(tmp_path) == []


def test_an_unknown_recipe(command, tmp_path):
    line = one_line(*command("train", "no-such-recipe", "--out", "there"))
    assert "unknown recipe 'no-such-recipe'" in line and "digits-ddpm" in line
    assert tree(tmp_path) == []


def test_truncated_weights(command, tmp_path, model):
    whole = (model / "model.safetensors").read_bytes()
    folder = broken(model, tmp_path, "model.safetensors", whole[: len(whole) // 2])
    before = tree(tmp_path)
    line = one_line(*command("generate", folder, "-o", "grid.png"))
    assert "model.safetensors is not a complete safetensors file" in line
    assert tree(tmp_path) == before


def test_a_pickle_that_calls_itself_safetensors(command, tmp_path, model):
    folder = broken(model, tmp_path, "model.safetensors", b"")
    torch.save({"a": torch.zeros(3)}, folder / "model.safetensors")
    assert "not a complete safetensors file" in one_line(*command("generate", folder))
    assert not (tmp_path / "grid.png").exists()


def test_an_unknown_field_in_the_config(command, tmp_path, model):
    config = json.loads((model / "config.json").read_text()) | {"colour": "red"}
    folder = broken(model, tmp_path, "config.json", json.dumps(config).encode())
    assert "config.json: unknown field 'colour'" in one_line(*command("generate", folder))
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"channels": 5}', b"\xff"], ids=repr)
def test_a_config_that_cannot_be_used(command, tmp_path, model, content):
    folder = broken(model, tmp_path, "config.json", content)
    assert "config.json" in one_line(*command("generate", folder))


def test_a_scheduler_that_minisd_does_not_have(command, tmp_path, model):
    config = b'{"_class_name": "DDPMScheduler", "thresholding": true}'
    folder = broken(model, tmp_path, "scheduler_config.json", config)
    assert "does not implement {'thresholding': True}" in one_line(*command("generate", folder))


def test_a_model_of_another_kind(command, tmp_path, model, judge, few_digits):
    assert "UNetConfig has" in one_line(*command("generate", judge))
    assert "ClassifierConfig has" in one_line(
        *command("evaluate", model, "-n", 2, "--judge", model)
    )


def test_a_model_that_needs_words(command, tmp_path, model):
    folder = broken(model, tmp_path, "config.json", b"")
    UNet(UNetConfig(8, 1, 1, (32, 32), (True, False), context_dim=4)).save_pretrained(folder)
    assert "needs a prompt" in one_line(*command("generate", folder))
    assert not (tmp_path / "grid.png").exists()


def test_more_samples_than_real_digits(command, model, judge, few_digits, monkeypatch):
    arguments = ("evaluate", model, "-n", 361, "--steps", 1, "--judge", judge)
    assert "361 samples need as many real digits" in one_line(*command(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "MODEL", "-n", "0"),
        ("generate", "MODEL", "-n", "-3"),
        ("generate", "MODEL", "--steps", "0"),
        ("generate", "MODEL", "--steps", "-5"),
        ("generate", "MODEL", "--seed", "-1"),
        ("generate", "MODEL", "--seed", "18446744073709551616"),
        ("evaluate", "MODEL", "--seed", "18446744073709551616"),
        ("train", "tiny-ddpm", "--seed", "18446744073709551616"),
        ("generate", "MODEL", "--dtype", "int4"),
        ("generate", "MODEL", "--sampler", "euler-maruyama"),
        ("evaluate", "MODEL", "-n", "1"),
        ("train", "tiny-ddpm", "--steps", "-200"),
        ("train", "tiny-ddpm", "--steps", "0"),
        ("train", "tiny-ddpm", "--seed", "-1"),
        ("train", "tiny-ddpm", "--precision", "int4"),
        ("train",),
        ("sculpt", "MODEL"),
    ],
    ids=" ".join,
)
def test_wrong_usage(command, tmp_path, model, arguments):
    arguments = [model if a == "MODEL" else a for a in arguments]
    status, out, err = command(*arguments)
    assert status == 2 and out == ""
    assert err.startswith("Usage: ") and "Traceback" not in err
    assert tree(tmp_path) == []


@pytest.mark.parametrize("action", ["generate", "evaluate", "train"])
@pytest.mark.parametrize("seed", [2**64, -1, "1.5", "seven"])
def test_the_range_of_a_seed_is_told(command, tmp_path, model, action, seed):
    status, _, err = command(action, model, f"--seed={seed}")
    told = " ".join(err.replace("│", " ").split())  # without the frame around it
    assert status == 2
    assert f"must be a whole number between 0 and 18446744073709551615, got {seed}" in told


def test_the_largest_seed(command, tmp_path, model):
    arguments = ("-n", 1, "--steps", 1, "--seed", 2**64 - 1)
    assert command("generate", model, *arguments)[0] == 0
    assert command("train", "tiny-ddpm", "--steps", 1, "--seed", 2**64 - 1)[0] == 0


@pytest.mark.parametrize("recipe", [None, 7, ["tiny-ddpm"], {}], ids=str)
def test_a_training_without_a_recipe(command, tmp_path, model, recipe):
    training = {} if recipe is None else {"recipe": recipe}
    folder = broken(model, tmp_path, "training.json", json.dumps(training).encode())
    assert "training.json names no recipe" in one_line(*command("evaluate", folder))


def test_half_precision_is_refused_on_a_cpu_and_bfloat16_is_not(command, tmp_path, model):
    arguments = ("generate", model, "-n", 1, "--steps", 1, "--dtype")
    assert "float16 needs a GPU" in one_line(*command(*arguments, "float16"))
    assert tree(tmp_path) == []
    assert command(*arguments, "bfloat16")[0] == 0


def test_a_variant_names_the_files_to_load(command, tmp_path, model):
    line = one_line(*command("generate", model, "--variant", "fp16"))
    assert "model.fp16.safetensors does not exist" in line


@pytest.mark.parametrize("option", ["--image", "--mask", "--map"])
@pytest.mark.parametrize("fault", ["cut off", "too large", "16 bytes of nothing"])
def test_a_picture_that_cannot_be_read_is_named(command, words, monkeypatch, option, fault):
    """There may be three pictures: the line says which."""
    Image.effect_noise((32, 32), 60).convert("RGB").save("good.jpg")
    content = Path("good.jpg").read_bytes()
    Path("bad.jpg").write_bytes(content[: len(content) // 2] if fault == "cut off" else content)
    if fault == "too large":
        Image.new("1", (300, 300)).save("bad.jpg")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    if fault == "16 bytes of nothing":
        Path("bad.jpg").write_bytes(bytes(16))
    good = {each: "good.jpg" for each in ("--image", "--mask") if each != option}
    arguments = [part for pair in good.items() for part in pair]
    line = one_line(*command("generate", words, "a house", *arguments, option, "bad.jpg"))
    assert "bad.jpg cannot be read as a picture: " in line


def test_a_photo_is_used_upright(command, words):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.effect_noise((48, 32), 60).convert("RGB").save("photo.jpg", exif=exif)
    arguments = ("a house", "--image", "photo.jpg", "--steps", 2, "-o", "x.png")
    assert command("generate", words, *arguments)[0] == 0
    assert Image.open("x.png").size == (4 * 32, 4 * 48)


def test_a_tilde_is_the_home_folder_in_every_path(command, tmp_path, monkeypatch, words, model):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    Image.new("RGB", (32, 32), "red").save(home / "red.png")
    Image.new("L", (32, 32), 255).save(home / "all.png")
    arguments = ["a house", "--image", "~/red.png", "--mask", "~/all.png", "--steps", 2]
    arguments += ["-o", "~/x.png", "--animate", "~/x.gif"]
    status, _, err = command("generate", words, *arguments)
    assert status == 0, err
    assert command("train", "tiny-classifier", "--out", "~/runs/there", "--steps", 5)[0] == 0
    assert "no-such.png does not exist" in one_line(
        *command("generate", words, "--map", "~/no-such.png")
    )
    assert {"x.png", "x.gif", "runs"} <= {path.name for path in home.iterdir()}
    assert not (tmp_path / "~").exists()
    status, _, err = command("generate", words, "a house", "-o", "~nobody-of-that-name/x.png")
    assert status == 2 and "Traceback" not in err


def test_what_the_console_cannot_show_is_escaped(command, labels, words, monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", write_through=True)
    monkeypatch.setattr(
        sys, "argv", ["minisd", "generate", str(words), "a house \u5bb6", "--steps", "1"]
    )
    monkeypatch.setattr(sys, "stdout", narrow)
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert rb"\u5bb6" in narrow.buffer.getvalue()


def test_one_seed_is_one_picture_on_every_device(command, model, monkeypatch):
    """The generator is one of the CPU, whatever device draws."""
    devices = []
    monkeypatch.setattr(minisd.lab.artist.Artist, "draw", lambda self, **wish: devices.append(
        wish["generator"].device.type) or iter([torch.zeros(1, 1, 8, 8)]))  # fmt: skip
    monkeypatch.setattr("minisd.device.best_device", lambda: torch.device("meta"))
    assert command("generate", model, "-n", 1)[0] == 0
    assert devices == ["cpu"]


@pytest.mark.parametrize("action", ["info", "evaluate"])
def test_the_hub_is_asked_for_what_is_read(command, tmp_path, monkeypatch, model, action):
    asked = []

    def download(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    command(action, "owner/model", *(["-n", "2", "--steps", "1"] if action == "evaluate" else []))
    first = {"info": "card.md", "evaluate": "training.json"}[action]
    assert asked[0] == first and (action == "evaluate" or asked == [first])
    assert not [name for name in asked if "*" in name]  # `locate` asks for names, never a pattern
    if action == "evaluate":
        assert {"config.json", "model.safetensors", "scheduler_config.json"} <= set(asked)


def test_more_steps_than_the_chain_has(command, tmp_path, model):
    arguments = ("generate", model, "-n", 1, "--steps", 201)
    assert "between 1 and 200, got 201" in one_line(*command(*arguments))
    assert tree(tmp_path) == []


def test_fp16_without_a_gpu(command, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # a fresh process has none
    try:
        line = one_line(*command("train", "tiny-ddpm", "--out", "there", "--precision", "fp16"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert "fp16 needs a GPU" in line
    assert tree(tmp_path) in ([], ["there"])


@pytest.mark.parametrize("path", ["file", "file/folder"])
def test_an_output_that_cannot_be_written(command, tmp_path, model, path):
    """A folder below a regular file: not even root may write there."""
    (tmp_path / "file").write_text("mine")
    assert f"cannot write to {path}" in one_line(*command("train", "tiny-ddpm", "--out", path))
    line = one_line(*command("generate", model, "-o", f"{path}/grid.png"))
    assert f"cannot write to {path}" in line
    assert tree(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(command, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o500)
    assert "Permission denied" in one_line(*command("train", "tiny-ddpm", "--out", folder))
    assert tree(tmp_path) == ["theirs"]


@pytest.mark.parametrize("option", ["-o", "--animate"])
def test_an_output_that_is_a_folder_is_refused_before_the_work(command, tmp_path, option):
    name = {"-o": "grid.png", "--animate": "grid.gif"}[option]
    (tmp_path / name).mkdir()
    line = one_line(*command("generate", "no-such-model", option, name))
    assert f"cannot write to {name}: it is a folder" in line
    assert tree(tmp_path) == [name]


def test_a_file_that_is_read_only_is_refused_before_the_work(command, tmp_path, monkeypatch):
    (tmp_path / "grid.png").write_text("mine")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    line = one_line(*command("generate", "no-such-model", "-o", "grid.png"))
    assert "cannot write to grid.png: it is read-only" in line
    assert (tmp_path / "grid.png").read_text() == "mine"


def test_a_name_that_is_too_long_is_refused_before_the_work(command, tmp_path):
    line = one_line(*command("generate", "no-such-model", "-o", "n" * 252 + ".png"))
    assert "File name too long" in line
    name = "n" * 250 + ".png"  # on its own it would do
    line = one_line(*command("generate", "no-such-model", "a", "-n", 2, "--no-grid", "-o", name))
    assert "File name too long" in line and tree(tmp_path) == []


@pytest.mark.parametrize("name", ["grid", "grid.gif", "grid.txt"])
def test_a_picture_of_an_unknown_kind(command, tmp_path, model, name):
    line = one_line(*command("generate", model, "-o", name))
    assert f"{name} must end in .png or .jpg or .jpeg or .webp" in line
    assert tree(tmp_path) == []


def test_a_full_disk_leaves_no_half_picture(command, tmp_path, model, monkeypatch):
    def full(self, path, *arguments, **others):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    status, out, err = command("generate", model, "-n", 1, "--steps", 1)
    assert status == 1 and out == ""
    assert "minisd: error: cannot write grid.png: No space left on device" in err.splitlines()[-1]
    assert tree(tmp_path) == []


def test_a_loss_that_is_not_finite(command, tmp_path, monkeypatch):
    def nan(model, batch, generator):
        return next(model.parameters()).sum() * float("nan")

    recipe = minisd.lab.recipes.RECIPES["tiny-ddpm"]
    parts = recipe.build(torch.device("cpu"))._replace(loss=nan)
    recipe = replace(recipe, build=lambda device: parts)
    monkeypatch.setitem(minisd.lab.recipes.RECIPES, "tiny-ddpm", recipe)
    status, out, err = command("train", "tiny-ddpm", "--out", "there")
    assert status == 1 and out == ""
    assert err.splitlines()[-1].startswith("minisd: error: the loss is nan at step 5")
    assert tree(tmp_path) == ["there"]


# Without a network

OFFLINE = """
import sys
from pathlib import Path
from minisd import cli
from minisd.data import digits
import tiny, minisd.lab.recipes

digits.download_folder = lambda: Path(sys.argv.pop(1))  # not the reader's own MNIST
cli.main()
"""


def offline(tmp_path, *arguments):
    """Run `minisd ARGUMENTS` in a process that reaches no network and has no MNIST."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [os.path.dirname(os.path.dirname(__file__)), os.environ.get("PYTHONPATH")])
        ),
        **dict.fromkeys(
            ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
        ),
    }
    for name in ("MINISD_DATA", "no_proxy", "NO_PROXY"):
        environment.pop(name, None)
    code = OFFLINE.replace("sys.argv.pop(1)", repr(str(tmp_path / "downloads")))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )


@pytest.mark.slow
def test_without_a_network_one_notice_and_the_uci_digits(tmp_path):
    result = offline(tmp_path, "train", "digits-judge", "--steps", 2, "--out", tmp_path / "judge")
    assert result.returncode == 0, result.stderr
    notices = [line for line in result.stderr.splitlines() if "UCI digits" in line]
    assert len(notices) == 1 and notices[0].startswith("minisd: note: MNIST cannot be reached")
    assert result.stderr.count("minisd: note:") == 1
    assert result.stdout.splitlines() == [
        f"digits-judge: 2 steps done, saved in {tmp_path / 'judge'}"
    ]
    training = json.loads((tmp_path / "judge" / "training.json").read_text())
    assert training["data"] == "UCI digits"
    assert [p for p in tmp_path.rglob("*ubyte*")] == []


@pytest.mark.slow
def test_without_a_network_a_hub_id_is_one_line(tmp_path):
    result = offline(tmp_path, "generate", "someone/no-such-model")
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("minisd: error: cannot download someone/no-such-model from the hub")
    assert not (tmp_path / "grid.png").exists()


# Prompts


def test_generate_draws_what_a_prompt_asks_for(command, tmp_path, labels):
    for prompt, name in (("7", "a"), ("7", "b"), ("3", "c")):
        status, out, _ = command("generate", labels, prompt, "--steps", 3, "-o", f"{name}.png")
        assert status == 0
        assert out == f"{name}.png: 1 image of {labels}: {prompt!r}, seed 0, 3 steps of ddpm\n"
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_generate_writes_a_sheet_or_single_pictures(command, tmp_path, labels):
    arguments = ("generate", labels, "7", "-n", 3, "--steps", 2, "-o", "x.png")
    assert command(*arguments, "--no-grid")[0] == 0
    assert tree(tmp_path) == ["x-0.png", "x-1.png", "x-2.png"]
    assert command(*arguments)[0] == 0 and (tmp_path / "x.png").exists()


def test_generate_draws_a_row_for_each_prompt(command, labels):
    sheets = []
    for prompts in (("7", "3"), ("7", "7")):
        status, out, _ = command("generate", labels, *prompts, "-n", 3, "--steps", 2, "-o", "x.png")
        asked = ", ".join(map(repr, prompts))
        assert status == 0 and out.startswith(f"x.png: 6 images of {labels}: {asked}, seed 0")
        sheets.append(np.asarray(Image.open("x.png")))
    mixed, sevens = sheets
    half = len(mixed) // 2
    assert mixed.shape == (half * 2, half * 3)
    assert np.array_equal(mixed[:half], sevens[:half])
    assert not np.array_equal(mixed[half:], sevens[half:])


def test_generate_animates_the_way(command, tmp_path, labels):
    status, _, _ = command(
        "generate", labels, "7", "--steps", 4, "-o", "x.png", "--animate", "x.gif"
    )
    assert status == 0
    with Image.open(tmp_path / "x.gif") as movie:
        assert movie.n_frames == 4
    assert "must end in .gif" in one_line(*command("generate", labels, "7", "--animate", "x.mp4"))


def test_evaluate_asks_for_every_digit(command, labels, judge, few_digits):
    arguments = ("evaluate", labels, "-n", 20, "--steps", 2, "--judge", judge, "--guidance", 2)
    status, out, _ = command(*arguments)
    assert status == 0
    assert "samples: 20, seed 0, 2 steps of ddpm, guidance 2; judge" in out
    assert re.search(r"judged as asked: \d+.\d\d%", out) and "judged as asked, 9: " in out


@pytest.mark.parametrize(
    ("prompt", "message"),
    [((), "needs a prompt"), (("house",), "draws the labels 0 to 9, not 'house'")],
    ids=["none", "unknown"],
)
def test_a_prompt_that_does_not_fit(command, tmp_path, labels, prompt, message):
    assert message in one_line(*command("generate", labels, *prompt))
    assert tree(tmp_path) == []


def test_a_model_that_takes_no_prompt(command, model):
    assert "takes no prompt" in one_line(*command("generate", model, "7"))


def test_all_that_a_recipe_builds_on_is_trained_before(command, tmp_path, monkeypatch):
    needing = replace(TINY["tiny-clip"].changed(steps=2), requires=("tiny-tokenizer",))
    monkeypatch.setitem(minisd.lab.recipes.RECIPES, "tiny-clip", needing)
    status, out, _ = command("train", "tiny-clip", "--all", "--out", "all/tiny-clip")
    assert status == 0
    assert out.splitlines() == [
        "tiny-tokenizer: saved in all/tiny-tokenizer",
        "tiny-clip: 2 steps done, saved in all/tiny-clip",
    ]
    assert {path.parent.name for path in (tmp_path / "all").glob("*/card.md")} == {
        "tiny-tokenizer", "tiny-clip",
    }  # fmt: skip


def test_generate_from_a_picture(command, tmp_path, words, labels):
    Image.new("RGB", (32, 32), "red").save("red.png")
    Image.new("L", (32, 32), 255).save("all.png")
    prompt, short = "a red house", ("--steps", 4, "-o", "x.png")
    results = []
    for options in ((), ("--image", "red.png"), ("--image", "red.png", "--mask", "all.png")):
        status, _, err = command("generate", words, prompt, *short, *options)
        assert status == 0, err
        results.append(np.asarray(Image.open("x.png")))
    assert results[0].shape == (128, 128, 3)
    assert not np.array_equal(results[0], results[1])
    assert np.array_equal(results[1], results[2])  # all of it is drawn anew
    for options, message in (
        (("--image", "none.png"), "none.png does not exist"),
        (("--image", words / "model_index.json"), "model_index.json cannot be read as a picture"),
        (("--mask", "all.png"), "a mask needs an image"),
        (("--image", "red.png", "--strength", 0), "strength must be"),
    ):
        assert message in one_line(*command("generate", words, prompt, *short, *options))
    line = one_line(*command("generate", labels, "7", "--image", "red.png"))
    assert "does not draw from pictures" in line


def test_generate_keeps_the_pixels_outside_of_a_mask(command, words, monkeypatch):
    frames = []
    monkeypatch.setattr("minisd.book.plots.save_gif", lambda path, shown: frames.extend(shown))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype="uint8")
    mask = np.zeros((32, 32), dtype="uint8")
    mask[5:15, 3:22] = 255
    Image.fromarray(pixels).save("card.png")
    Image.fromarray(mask).save("mask.png")
    drawing = ("generate", words, "a tent", "--image", "card.png", "--mask", "mask.png",
               "--strength", 1, "--steps", 3, "-o", "x.png")  # fmt: skip
    results = []
    for options in ((), ("--animate", "x.gif")):
        status, _, err = command(*drawing, *options)
        assert status == 0, err
        results.append(np.asarray(Image.open("x.png"))[::4, ::4])
    assert np.array_equal(*results)
    assert len(frames) == 3
    framed = [np.asarray(frame)[::2, ::2][2:-2, 2:-2] for frame in frames]  # a margin of 2
    for picture in (results[0], *framed):
        assert np.array_equal(picture[mask == 0], pixels[mask == 0])
        assert (picture != pixels).any(axis=2)[mask == 255].mean() > 0.9


def test_generate_needs_a_prompt_for_words(command, tmp_path, words):
    assert "needs a prompt" in one_line(*command("generate", words))
    assert tree(tmp_path) == []


# Maps


def paint(path, size=32):
    labels = Postcards("train", 1, size=size).masks()
    image_grid(paint_maps(labels), scale=1, gap=0).save(path)


def test_generate_draws_what_a_map_says(command, tmp_path, maps):
    paint("map.png")
    pictures = []
    for settings in (["--map", "map.png"], ["a red tent", "--map", "map.png"], ["a red tent"]):
        status, out, _ = command("generate", maps, *settings, "--steps", 2, "-o", "a.png")
        assert status == 0 and out.startswith("a.png: 1 image of")
        pictures.append((tmp_path / "a.png").read_bytes())
    assert len(set(pictures)) == 3
    assert command("generate", maps, "--map", "map.png", "-n", 3, "--steps", 2)[0] == 0


def test_maps_that_cannot_be_followed(command, tmp_path, maps, words):
    paint("map.png")
    paint("large.png", 64)
    Image.new("RGB", (32, 32), "#123456").save("blue.png")
    for model, file, message in (
        (maps, "large.png", "a map must be as large as its picture"),
        (maps, "blue.png", "the map is #123456 at row 0, column 0; its colours are sky #cfe3f5"),
        (maps, "missing.png", "missing.png does not exist"),
        (words, "map.png", "does not read maps"),
    ):
        assert message in one_line(*command("generate", model, "--map", file))
    assert not (tmp_path / "grid.png").exists()
