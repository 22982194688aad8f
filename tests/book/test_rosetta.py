"""The Rosetta table is what its script writes, and its names are those of the other libraries."""

import csv
import importlib.util
import io
from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils as converters

from minisd.weights import unet_config_to_diffusers, vae_config_to_diffusers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rosetta():
    spec = importlib.util.spec_from_file_location("rosetta", ROOT / "book" / "rosetta.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["rosetta.md", "rosetta.csv"])
def test_the_files_are_what_the_script_writes(rosetta, name):
    (path,) = (path for path in rosetta.FILES if path.name == name)
    assert path.read_text(encoding="utf-8") == rosetta.FILES[path](), "run book/rosetta.py"


def test_the_list_is_complete(rosetta):
    rows = list(csv.DictReader(io.StringIO(rosetta.complete_list())))
    counts = {part: sum(row["part"] == part for row in rows) for part in rosetta.NETWORKS}
    assert counts == {"unet": 686, "vae": 248, "text_encoder": 196}
    assert sum(int(row["parameters"]) for row in rows) == 1_066_235_307
    for name in ("minisd", "diffusers", "original"):
        assert len({(row["part"], row[name]) for row in rows}) == 1130


def convert(part, checkpoint):
    """Let diffusers rename the tensors of an original file."""
    if part == "unet":
        raw = unet_config_to_diffusers(config_of(part))
        return converters.convert_ldm_unet_checkpoint(checkpoint, raw)
    if part == "vae":
        raw = vae_config_to_diffusers(config_of(part))
        return converters.convert_ldm_vae_checkpoint(checkpoint, raw)
    return converters.convert_ldm_clip_checkpoint(checkpoint)


def config_of(part):
    from minisd import full_size

    return full_size.CONFIGS[part]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_diffusers_reads_the_original_names_as_we_do(rosetta, part):
    """Each tensor holds its own number, so that none can stand in for another."""
    rows = rosetta.rows(part)
    checkpoint = {}
    for number, row in enumerate(rows):
        is_1x1 = part == "vae" and ".attn_1." in row.original and row.shape.count("x") == 1
        shape = (1, 1, 1, 1) if is_1x1 else (1,) * (row.shape.count("x") + 1)
        checkpoint[row.original] = torch.full(shape, float(number))
    converted = convert(part, checkpoint)
    found = {name: int(tensor.flatten()[0]) for name, tensor in converted.items()}
    assert found == {row.diffusers: number for number, row in enumerate(rows)}
