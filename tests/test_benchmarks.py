"""The benchmarks run, and what they have kept belongs to the weights beside it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minisd import UNet
from minisd.metrics import Judge
from minisd.pretrained import locate

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


@pytest.mark.slow
def test_a_row_is_scored_and_laid_beside_diffusers(schedulers):
    unet, judge = UNet.from_pretrained("digits-ddpm"), Judge.from_pretrained("digits-judge")
    row = ("DDIM", "ddim", {}, 5)
    result = schedulers.measure("digits-ddpm", unet, judge, row, 40, 4, torch.float32)
    assert result["calls"] == 5 and result["samples"] == 40
    assert result["difference"] < 1e-4 and result["time_ratio"] > 0
    assert result["fid"] > 0 and 0 < result["confidence"] <= 1


@pytest.mark.slow
def test_full_size_is_measured_beside_diffusers_on_small_networks():
    """The whole script, with narrow layers: loading, each network, and a picture."""
    command = [sys.executable, str(BENCHMARKS / "sd15.py"), "--quick", "--dtype", "float32"]
    printed = subprocess.check_output(command, text=True, cwd=BENCHMARKS.parent)
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| ")][1:]
    assert [row[0].split(",")[0].strip() for row in rows] == [
        "loading", "text encoder", "U-Net", "decoder", "prompt to picture",
    ]  # fmt: skip
    assert rows[0][-1].strip() == "-"
    assert all(float(row[-1]) <= 1e-4 for row in rows[1:])
