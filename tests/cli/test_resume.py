"""Killed and resumed, or shared by two processes, a run ends as if nothing had happened."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from minisd.classifier import Classifier
from minisd.files import read_json
from minisd.lab.recipes import run

SCRIPT = Path(tiny.__file__)


def start(folder, *arguments, recipe="tiny-ddpm"):
    command = [sys.executable, SCRIPT, recipe, folder, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def saved_log(folder):
    """The log in the checkpoint, [] before there is one; a damaged checkpoint raises."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return []
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["log"])


def without_seconds(log):
    return [{**row, "seconds": None} for row in log]


def kill_after(process, folder, step, pause):
    """Kill without a warning, `pause` seconds after the checkpoint of `step` is there."""
    deadline = time.monotonic() + 120
    while not (log := saved_log(folder)) or log[-1]["step"] < step:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.01)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    finish(start(straight))

    seed = time.time_ns()
    print(f"moments drawn with seed {seed}")
    chance = random.Random(seed)
    steps = sorted(chance.sample(range(5, 80, 5), 3))
    for number, step in enumerate(steps):
        pause = chance.uniform(0, 0.1)
        print(f"killed {pause:.3f} s after step {step} was saved")
        process = start(broken, *["--resume"] * (number > 0))
        kill_after(process, broken, step, pause)
        assert saved_log(broken)[-1]["step"] >= step
        assert not (broken / "model.safetensors").exists()
    finish(start(broken, "--resume"))

    weights = [(folder / "model.safetensors").read_bytes() for folder in (straight, broken)]
    assert weights[0] == weights[1]
    a, b = (load_file(folder / "checkpoint.safetensors") for folder in (straight, broken))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert without_seconds(saved_log(straight)) == without_seconds(saved_log(broken))
    a, b = (read_json(folder / "training.json") for folder in (straight, broken))
    assert without_seconds(a["log"]) == without_seconds(b["log"])


@pytest.mark.slow
def test_a_killed_run_is_not_overwritten_without_resume(tmp_path):
    process = start(tmp_path)
    kill_after(process, tmp_path, 5, 0)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    again = start(tmp_path)
    output, _ = again.communicate(timeout=300)
    assert again.returncode != 0 and "holds a run already: add --resume" in output
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def launch(arguments, **variables):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    command = [*LAUNCH, *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, env=environment, **pipes)


def two_commands(recipe, folder):
    """One `accelerate launch --cpu` per process: alone, and without MPI, it starts only one."""
    arguments = ["--cpu", "--main_process_port", free_port(), SCRIPT, recipe, folder]
    processes = [launch(arguments, WORLD_SIZE="2", RANK=str(rank)) for rank in range(2)]
    for process in processes:
        finish(process)
    return read_json(folder / "training.json")


def one_command(recipe, folder):
    """accelerate starts both processes; that they use the CPU is told by a variable."""
    arguments = ["--multi_gpu", "--main_process_port", free_port(), SCRIPT, recipe, folder]
    finish(launch(arguments, ACCELERATE_USE_CPU="true"))
    return read_json(folder / "training.json")


def follow(recipe, folder, **settings):
    *_, last = run(recipe, folder, **settings)
    return last


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(tmp_path):
    """Where nothing is drawn at random, halves of a batch must add up to the batch."""
    training = two_commands("tiny-classifier", tmp_path / "two")
    one = follow(tiny.RECIPES["tiny-classifier"], tmp_path / "one")
    assert training["cost"]["machine"].startswith("2 x ")
    assert [row["step"] for row in training["log"]] == [row["step"] for row in one.log]
    for ours, theirs in zip(training["log"], one.log, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    answers = []
    for name in ("one", "two"):  # not the weights: those before a normalisation may drift
        judge = Classifier.from_pretrained(tmp_path / name)
        with torch.no_grad():
            answers.append(judge(tiny.small_digits().images)["digit"].softmax(-1))
    assert answers[0].amax(-1).mean() > 0.25, "nothing was learnt, so nothing is compared"
    print("largest difference of a probability:", (answers[0] - answers[1]).abs().max().item())
    assert (answers[0] - answers[1]).abs().max() < 1e-3


def together(*arguments):
    """Run both processes of one command, and return its exit status and what they said."""
    arguments = ["--multi_gpu", "--main_process_port", free_port(), SCRIPT, *arguments]
    process = launch(arguments, ACCELERATE_USE_CPU="true")
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.slow
def test_clip_is_not_split_between_processes(tmp_path):
    status, output = together("tiny-clip", tmp_path)
    assert status != 0 and "CLIP compares all pairs of a batch" in output
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.slow
def test_two_processes_make_a_tokenizer(tmp_path):
    status, output = together("tiny-tokenizer", tmp_path / "two")
    assert status == 0, output
    list(run(tiny.RECIPES["tiny-tokenizer"], tmp_path / "one"))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two
    assert read_json(tmp_path / "two" / "training.json")["recipe"] == "tiny-tokenizer"


@pytest.mark.slow
def test_two_processes_resume_no_run_of_one(tmp_path):
    loop = run(tiny.RECIPES["tiny-classifier"], tmp_path)
    while next(loop).step < 5:
        pass
    loop.close()
    status, output = together("tiny-classifier", tmp_path, "--resume")
    assert status != 0
    assert "processes is 1 in the checkpoint, 2 in this run" in output


@pytest.mark.slow
def test_two_processes_reach_the_same_loss_within_noise(tmp_path):
    training = one_command("tiny-ddpm", tmp_path / "two")
    assert training["cost"]["machine"].startswith("2 x ")
    recipe = tiny.RECIPES["tiny-ddpm"]

    def tail(log):  # the mean loss of the last 60 steps
        return sum(row["loss"] for row in log[-12:]) / 12

    ones = []
    for seed in range(4):
        settings = replace(recipe.settings, seed=seed)
        ones.append(tail(follow(replace(recipe, settings=settings), tmp_path / str(seed)).log))
    mean = sum(ones) / 4
    spread = (sum((x - mean) ** 2 for x in ones) / 3) ** 0.5
    two = tail(training["log"])
    print(f"two processes {two:.4f}, one process {mean:.4f} +- {spread:.4f}: {ones}")
    assert mean < 0.6 * training["log"][0]["loss"], "nothing was learnt, so nothing is compared"
    assert abs(two - mean) < 5 * spread
    assert spread < 0.1 * mean
