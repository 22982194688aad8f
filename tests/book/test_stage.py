"""What the last chapter runs on: v1.5 where there are a GPU and its weights, else postcards."""

from itertools import islice

import pytest
import torch
from helpers import TINY_SD15, tiny_pipeline

from minisd import pretrained
from minisd.book import stage as stage_module
from minisd.book.stage import Stage, set_stage
from minisd.full_size import CONFIGS, NETWORKS, find_weights, random_sd15, weights_are_here
from minisd.pretrained import SD15


def put_weights(folder, ending):
    """Lay empty files where v1.5's would be."""
    files = ["model_index.json", "scheduler/scheduler_config.json"]
    files += ["tokenizer/tokenizer_config.json"]
    for part, kind in NETWORKS.items():
        weights = kind.diffusers_format.file.replace(".safetensors", ending)
        files += [f"{part}/config.json", f"{part}/{weights}"]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with no weights and no network, whose device can be chosen."""
    monkeypatch.setenv("MINISD_DATA", str(tmp_path))
    monkeypatch.setattr(pretrained, "CHECKPOINTS", tmp_path / "data" / "checkpoints")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)

    def asked(*arguments, **settings):
        raise AssertionError(f"the hub was asked for {arguments}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)

    def has(device):
        monkeypatch.setattr(stage_module, "best_device", lambda: torch.device(device))
        return tmp_path / SD15

    return has


def test_without_a_gpu_the_postcards_are_drawn_and_that_is_said(machine):
    put_weights(machine("cpu"), ".safetensors")
    stage = set_stage(download=True)
    assert not stage.full_size and stage.dtype == torch.float32
    assert str(stage) == (
        "postcards on cpu, in float32: without a GPU v1.5 would take many minutes for a picture"
    )


def test_a_gpu_without_weights_draws_postcards_unless_it_may_download(machine):
    machine("cuda")
    stage = set_stage()
    assert not stage.full_size and stage.source == "postcards"
    for said in ("postcards on cuda, in float32", "not here", "2.1 GB", "OpenRAIL-M"):
        assert said in str(stage)
    stage = set_stage(download=True)
    assert stage.full_size and stage.source == SD15
    assert (stage.dtype, stage.variant) == (torch.float16, "fp16")
    for said in ("will be downloaded", "2.1 GB", "OpenRAIL-M"):
        assert said in str(stage)


@pytest.mark.parametrize(
    ("ending", "variant"), [(".fp16.safetensors", "fp16"), (".safetensors", None)]
)
@pytest.mark.parametrize(("device", "dtype"), [("cuda", torch.float16), ("mps", torch.float32)])
def test_a_gpu_with_weights_draws_at_full_size(machine, ending, variant, device, dtype):
    folder = put_weights(machine(device), ending)
    for download in (False, True):  # what is here is not fetched again
        stage = set_stage(download)
        assert stage.full_size and stage.source == folder and str(folder) in str(stage)
        assert (stage.variant, stage.dtype) == (variant, dtype)


def test_the_half_precision_files_go_first(machine):
    folder = machine("cuda")
    for ending in (".safetensors", ".fp16.safetensors"):
        put_weights(folder, ending)
    assert set_stage().variant == "fp16"


def test_the_cache_of_the_hub_will_do(machine, monkeypatch, tmp_path):
    machine("cuda")
    cache = put_weights(tmp_path / "snapshots" / "1234", ".fp16.safetensors")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repo, file: str(cache / file)
    )
    assert find_weights("fp16") == cache and find_weights() is None
    assert set_stage().source == cache


@pytest.mark.parametrize(
    "missing", ["vae/diffusion_pytorch_model.safetensors", "unet/config.json", "model_index.json"]
)
def test_a_copy_with_a_file_missing_is_none(machine, missing):
    folder = put_weights(machine("cuda"), ".safetensors")
    assert weights_are_here() and not weights_are_here("fp16")
    (folder / missing).unlink()
    assert not weights_are_here() and not set_stage().full_size


def test_what_minisd_saves_is_found(machine, monkeypatch):
    for part, config in TINY_SD15.items():
        monkeypatch.setitem(CONFIGS, part, config)
    folder = machine("cuda")
    random_sd15().save_pretrained(folder, format="diffusers")
    assert find_weights() == folder


def test_a_stage_loads_its_pipeline(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    stage = Stage("tiny", tmp_path, torch.device("cpu"), torch.bfloat16, None, "as a test")
    pipe = stage.load()
    assert pipe.dtype == torch.bfloat16 and pipe.device.type == "cpu"
    (state,) = islice(pipe.denoise("a red house", num_inference_steps=1), 1)
    assert state.x.isfinite().all()


def test_a_download_that_fails_says_all_that_is_needed(machine, monkeypatch, tmp_path):
    machine("cuda")

    def no_network(*arguments, **settings):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(ValueError) as raised:
        set_stage(download=True).load()
    for said in (SD15, "no network", "2.1 GB", "OpenRAIL-M", str(tmp_path / SD15)):
        assert said in str(raised.value)
