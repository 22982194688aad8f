"""The benchmarks run, and what they have kept belongs to the weights beside it."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_pipeline

from minisd import CLIP, Tokenizer, UNet
from minisd.classifier import Classifier
from minisd.data.digits import Digits, digits
from minisd.data.postcards import JUDGED
from minisd.lab.scores import Score
from minisd.metrics import frechet_distance
from minisd.pretrained import CHECKPOINTS, locate

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def schedulers():
    return load("schedulers")


def test_the_samplers_were_measured_on_the_bundled_weights(schedulers):
    folder = locate("digits-ddpm")
    kept = json.loads((folder / schedulers.FILE).read_text())
    assert kept["model"] == json.loads((folder / "training.json").read_text())["commit"]
    assert {(row["sampler"], row["steps"]) for row in kept["rows"]} == {
        (label, steps) for label, _, _, steps in schedulers.ROWS
    }
    assert all(row["samples"] == kept["samples"] for row in kept["rows"])


def test_every_row_can_be_built_for_both_libraries(schedulers):
    for _, sampler, settings, steps in schedulers.ROWS:
        ours, theirs = (
            schedulers.make("digits-ddpm", sampler, settings, other) for other in (False, True)
        )
        ours.set_timesteps(steps)
        theirs.set_timesteps(steps)
        assert len(ours.timesteps) == len(theirs.timesteps)


def test_no_row_of_a_sweep_is_measured_twice():
    sweeps = load("guidance_and_steps")
    assert len(set(sweeps.ROWS)) == len(sweeps.ROWS) and sweeps.USUAL in sweeps.ROWS
    assert {scale for scale, steps in sweeps.ROWS if steps == 25} > {1.0, 4.0}


def test_an_encoder_is_cut_and_its_original_is_not():
    benchmark = load("text_or_unet")
    whole = CLIP.from_pretrained("clip-postcards").text_model
    ids = Tokenizer.from_pretrained("tokenizer-postcards")(["a red tent", "a red house"])
    with torch.no_grad():
        states = {layers: benchmark.cut(whole, layers)(ids) for layers in (0, 1, 3)}
        assert torch.equal(states[3], whole(ids))  # 3 is all of it
    assert len(whole.blocks) == max(benchmark.LAYERS)
    assert torch.equal(states[0][0, -1], states[0][1, -1])  # a table: no token knows the others
    assert not torch.equal(states[1][0, -1], states[1][1, -1])


def test_trainings_take_turns_while_they_are_timed(monkeypatch):
    benchmark, clock, order = load("text_or_unet"), [0.0], []

    def training(name, seconds):
        while True:
            order.append(name)
            clock[0] += seconds * (5 if len(order) <= 2 * benchmark.TIMED else 1)  # a slow start
            yield

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    paces = benchmark.seconds_per_step({"a": training("a", 1.0), "b": training("b", 3.0)})
    assert paces == pytest.approx({"a": 1.0, "b": 3.0})
    turns = order[:: benchmark.TIMED]
    assert turns == ["a", "b"] * benchmark.ROUNDS


@pytest.mark.parametrize("name", ["guidance_and_steps", "text_or_unet"])
def test_what_was_measured_belongs_to_the_bundled_weights(name):
    benchmark, cards = load(name), {}
    path = CHECKPOINTS / "postcards" / benchmark.FILE
    if not path.exists():
        pytest.skip(f"not measured yet: python benchmarks/{name}.py --save")
    for part in ("postcards", "clip-postcards", "postcards-vae"):
        cards[part] = json.loads((locate(part) / "training.json").read_text())["commit"]
    kept = json.loads(path.read_text())
    if name == "guidance_and_steps":
        assert kept["model"] == cards["postcards"]
        assert {(row["scale"], row["steps"]) for row in kept["rows"]} == set(benchmark.ROWS)
    else:
        assert all(cards[part] == commit for part, commit in kept["parts"].items())
        arms = {(row["layers"], tuple(row["width"]), row["seed"]) for row in kept["rows"]}
        seeds = {seed for *_, seed in arms}
        assert len(seeds) > 2
        assert len(arms) == len(seeds) * len(benchmark.LAYERS) * len(benchmark.WIDTHS)


@pytest.mark.slow
def test_a_row_of_a_sweep_is_measured(tmp_path):
    sweeps = load("guidance_and_steps")
    pipe = tiny_pipeline()
    pipe.unet.config = replace(pipe.unet.config, sample_size=16)  # 64 x 64 pixels
    pipe.save_pretrained(tmp_path)
    judge = Classifier.from_pretrained("postcards-judge")
    real, twins = sweeps.real_features(judge, 4)
    row = sweeps.measure(tmp_path, judge, real, (2.0, 3), 4)
    assert (row["calls"], row["samples"]) == (6, 4)
    assert row["fid"] > frechet_distance(twins, real) > 0
    assert 0 <= row["held_out"]["all"] <= min(row["held_out"][name] for name in JUDGED) <= 4


@pytest.mark.slow
def test_a_row_is_scored_and_laid_beside_diffusers(schedulers):
    unet, judge = UNet.from_pretrained("digits-ddpm"), Classifier.from_pretrained("digits-judge")
    row = ("DDIM", "ddim", {}, 5)
    real = digits("train").images, digits("test").images
    result = schedulers.measure("digits-ddpm", unet, judge, real, row, 40, 4, torch.float32)
    assert result["calls"] == 5 and result["samples"] == 40
    assert result["difference"] < 1e-4 and result["time_ratio"] > 0
    low, high = result["fid_interval"]
    assert 0 < low < result["fid"] < high and 0 < result["confidence"] <= 1
    sure = torch.tensor(result["confidences"])
    assert len(sure) == 40 and sure.mean().item() == pytest.approx(result["confidence"], abs=1e-4)


def test_rows_of_samplers_are_resampled_in_pairs(schedulers, monkeypatch):
    """A sampler that is a little worse for every noise is worse in every resample."""
    judge, real = Classifier.from_pretrained("digits-judge"), digits("test").images[:150]
    monkeypatch.setattr(schedulers, "RESAMPLES", 5)
    generator = torch.Generator().manual_seed(0)
    better = real + 0.3 * torch.randn(real.shape, generator=generator)
    worse = real + 1.3 * (better - real)
    one, again, other = (schedulers.paired(judge, x, real) for x in (better, better, worse))
    assert one == again and len(set(one["fid_resampled"])) == 5
    gaps = [b - a for a, b in zip(one["fid_resampled"], other["fid_resampled"], strict=True)]
    spread = max(one["fid_resampled"]) - min(one["fid_resampled"])
    assert min(gaps) > 0 and max(gaps) - min(gaps) < spread


def test_the_digits_are_read_once_and_an_interrupted_run_goes_on(
    schedulers, tmp_path, monkeypatch, capsys
):
    read, measured = [], []

    def measure(model, unet, judge, real, row, *_):
        measured.append((row[0], row[3]))
        assert [len(images) for images in real] == [3, 3]
        return {
            "sampler": row[0], "steps": row[3], "calls": row[3], "fid": 2.0, "fid_real": 1.0,
            "fid_interval": (1.5, 2.5), "milliseconds": 3.0,
        }  # fmt: skip

    def digits(split):
        read.append(split)
        return Digits(torch.zeros(3, 1, 28, 28), torch.zeros(3), "nothing")

    (tmp_path / "training.json").write_text('{"commit": "abc"}')
    monkeypatch.setattr(schedulers, "digits", digits)
    monkeypatch.setattr(schedulers, "measure", measure)
    monkeypatch.setattr(schedulers, "locate", lambda name: tmp_path)
    for steps in (["5"], ["5", "10"]):
        monkeypatch.setattr("sys.argv", ["schedulers.py", "--save", "--steps", *steps])
        schedulers.main()
    assert read == ["train", "test"] * 2  # once in each run
    assert len(set(measured)) == len(measured) > 10
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert "| DDIM | 5 | 5 | 2.000 | 1.500 to 2.500 | 3.0 | - | - |" in lines


def test_the_race_was_run_by_the_racers_of_the_script():
    race = load("pixels_or_latents")
    kept = json.loads((locate("postcards") / race.FILE).read_text())
    assert {row["racer"] for row in kept["rows"]} == set(race.RACERS)
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in UNet(config).parameters())
            for name, config in race.RACERS.items()
        }
    assert all(row["parameters"] == sizes[row["racer"]] for row in kept["rows"])
    assert len({row["steps"] for row in kept["rows"]}) == len(kept["rows"]) / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latents", "pixels"])
def test_a_racer_is_scored_at_doubling_steps_and_at_the_end(monkeypatch, name):
    race = load("pixels_or_latents")
    small = {"channels": (8, 8), "attention": (False, True)}
    monkeypatch.setattr(race, "BATCH", 2)
    monkeypatch.setattr(
        race, "RACERS", {name: replace(config, **small) for name, config in race.RACERS.items()}
    )
    rows = list(race.Course(pictures=8, samples=2).run(name, 18))
    assert [row["steps"] for row in rows] == [16, 18]
    assert 0 < rows[0]["seconds"] < rows[1]["seconds"]
    assert all(0 <= row["low"] <= row["right"] <= row["high"] <= 1 for row in rows)
    assert all(0 <= row["all"] <= 2 for row in rows)


def test_inpainting_prints_one_table(monkeypatch, capsys):
    inpainting, share = load("inpainting"), Score(0.95, unit="%", digits=0)
    asked = []
    monkeypatch.setattr(inpainting, "locate", lambda name: name)
    monkeypatch.setattr(
        inpainting,
        "evaluate_inpainting",
        lambda folder, settings: asked.append((folder, settings.n)) or {"another": share},
    )
    monkeypatch.setattr("sys.argv", ["inpainting.py", "--samples", "7"])
    inpainting.main()
    assert asked == [("postcards", 7)]
    assert capsys.readouterr().out.splitlines()[-1] == "| another | 95% |"


@pytest.mark.slow
def test_full_size_is_measured_beside_diffusers_on_small_networks():
    """The whole script, with narrow layers: loading, each network, and a picture."""
    command = [sys.executable, str(BENCHMARKS / "sd15.py"), "--quick", "--dtype", "float32"]
    printed = subprocess.check_output(command, text=True, cwd=BENCHMARKS.parent)
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    rows = [line.split("|")[1:-1] for line in lines[2:]]  # after the head and the ruler
    assert [row[0].split(",")[0].strip() for row in rows] == [
        "loading", "text encoder", "U-Net", "decoder", "prompt to picture",
    ]  # fmt: skip
    assert rows[0][-1].strip() == "-"
    assert all(float(row[-1]) <= 1e-4 for row in rows[1:])


def test_autoencoders_are_compared_at_equal_processor_time(monkeypatch, capsys):
    """A step that takes twice the time leaves half the steps; each run prints its row."""
    autoencoders = load("autoencoders")
    small = replace(autoencoders.ARMS["fine"], channels=(8, 8, 8), batch_size=4)
    monkeypatch.setattr(autoencoders, "ARMS", {"one": small, "other": small})
    spent = iter([1.5, 3.0])
    monkeypatch.setattr(autoencoders, "seconds_of_a_step", lambda arm, cards: next(spent))
    arguments = "--minutes 0.1 --seeds 2 --arms one,other --cards 8 --samples 4".split()
    monkeypatch.setattr("sys.argv", ["autoencoders.py", *arguments])
    threads = torch.get_num_threads()
    try:
        autoencoders.main()
    finally:
        torch.set_num_threads(threads)
    rows = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[\d.]+$", "", row.split(":")[0]) for row in rows] == [
        "one, seed ", "one, seed ", "other, seed ", "other, seed ",
    ]  # fmt: skip
    assert [int(re.search(r"(\d+) steps", row)[1]) for row in rows] == [4, 4, 2, 2]
    assert rows[0] != rows[1] and all("edges kept on the subject" in row for row in rows)


def test_the_edges_of_an_error_count(generator):
    with_edges = load("autoencoders").with_edges
    flat, striped = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    striped[..., ::2] = 1
    assert with_edges(striped, striped) == 0
    assert with_edges(striped, flat).item() == pytest.approx(0.5 + 1.0)
    assert with_edges(flat + 1, flat).item() == pytest.approx(1.0)
