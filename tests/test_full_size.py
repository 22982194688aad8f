"""v1.5 in its true size, as far as it fits into a fast test; the rest is benchmarks/sd15.py."""

import warnings
import weakref
from dataclasses import replace
from itertools import islice

import pytest
import torch
from helpers import randomise, tiny_pipeline

import minisd
from minisd import (
    CLIPTextConfig,
    StableDiffusionPipeline,
    UNetConfig,
    VAEConfig,
    full_size,
    pretrained,
)
from minisd.full_size import (
    CONFIGS,
    NETWORKS,
    Stage,
    find_weights,
    on_demand,
    random_network,
    random_sd15,
    random_tensor,
    set_stage,
    stand_in_tokenizer,
    weights_are_here,
)
from minisd.pretrained import SD15

SMALL = {  # v1.5 with narrower layers, and no fewer
    "text_encoder": replace(CLIPTextConfig.SD15, dim=24, num_layers=2),
    "unet": replace(
        UNetConfig.SD15, channels=(8, 8, 16, 16), norm_num_groups=4, num_heads=2, context_dim=24
    ),
    "vae": replace(VAEConfig.SD15, channels=(8, 8, 8, 8), norm_num_groups=4),
}


@pytest.fixture
def small(monkeypatch):
    for part, config in SMALL.items():
        monkeypatch.setitem(CONFIGS, part, config)


def test_the_random_system_has_v1_5s_sizes():
    with torch.device("meta"):
        networks = {part: kind(CONFIGS[part]) for part, kind in NETWORKS.items()}
    tensors = {part: len(network.state_dict()) for part, network in networks.items()}
    assert tensors == {"text_encoder": 196, "unet": 686, "vae": 248}
    assert sum(p.numel() for n in networks.values() for p in n.parameters()) == 1_066_235_307
    assert minisd.random_sd15 is random_sd15


def test_a_random_tensor_depends_on_its_name_and_the_seed_only():
    shape = torch.Size((64, 32, 3, 3))
    once = random_tensor("up.0.resnet.conv_1.weight", shape)
    torch.randn(7)
    assert torch.equal(once, random_tensor("up.0.resnet.conv_1.weight", shape))
    assert not torch.equal(once, random_tensor("up.1.resnet.conv_1.weight", shape))
    assert not torch.equal(once, random_tensor("up.0.resnet.conv_1.weight", shape, seed=1))
    assert abs(once.std() * (32 * 9) ** 0.5 - 1) < 0.05
    assert abs(random_tensor("norm_out.weight", torch.Size((1000,))).mean() - 1) < 0.05
    assert abs(random_tensor("norm_out.bias", torch.Size((1000,))).mean()) < 0.05


def test_no_weight_of_a_random_network_is_zero(small):
    for part in NETWORKS:
        network = random_network(part, torch_dtype=torch.bfloat16)
        for name, p in network.named_parameters():
            assert p.dtype == torch.bfloat16 and p.device.type == "cpu", name
            assert p.abs().max() > 0, name


def test_the_random_system_draws_without_a_single_warning(small, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = random_sd15(seed=3)
        settings = dict(height=64, width=64, num_inference_steps=3, output_type="pt")
        seeded = [torch.Generator().manual_seed(0) for _ in range(2)]
        drawn = pipe("An image of Angkor.", generator=seeded[0], **settings).images
        pipe.save_pretrained(tmp_path, format="diffusers")
        again = StableDiffusionPipeline.from_pretrained(tmp_path)
        assert torch.equal(
            again("An image of Angkor.", generator=seeded[1], **settings).images, drawn
        )
    assert drawn.shape == (1, 3, 64, 64) and drawn.std() > 0.05


def test_the_stand_in_tokenizer_is_as_large_as_clips_and_loses_nothing():
    tokenizer = stand_in_tokenizer()
    assert tokenizer.vocab_size == 49_408 and len(tokenizer.ranks) == 48_894
    assert tokenizer(["An image of Angkor with a sunset sky."]).shape == (1, 77)
    assert tokenizer.eos_token_id == CLIPTextConfig.SD15.eos_token_id
    for text in ("a red temple", "Ünïcode 12 日本"):
        assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == text.lower().replace(
            " ", ""
        )


@pytest.mark.parametrize("part", NETWORKS)
def test_on_demand_is_the_same_network_with_one_layer_at_a_time(part):
    """The text encoder also uses the weight of an embedding without calling that layer."""
    kind, config = NETWORKS[part], SMALL[part]
    whole = randomise(kind(config)).eval()
    weights = whole.state_dict()
    with torch.device("meta"):
        empty = kind(config).eval()
    inputs = {
        "text_encoder": (torch.arange(7)[None],),
        "unet": (torch.randn(1, 4, 8, 8), 5, torch.randn(1, 7, 24)),
        "vae": (torch.rand(1, 3, 64, 64), torch.Generator().manual_seed(0)),
    }[part]
    alive, most = weakref.WeakSet(), []

    def fetch(name, shape):
        assert weights[name].shape == shape
        weight = weights[name].clone()
        alive.add(weight)
        most.append(len(alive))
        return weight

    def first(result):
        return result[0] if isinstance(result, tuple) else result

    with torch.no_grad():
        expected = first(whole(*inputs))
        if part == "vae":
            inputs[1].manual_seed(0)
        with on_demand(empty, fetch):
            assert torch.equal(first(empty(*inputs)), expected)
    assert len(most) >= len(weights) and max(most) <= 2  # a weight and its bias
    assert not alive and all(p.is_meta for p in empty.parameters())


def test_on_demand_brings_what_a_module_takes_from_its_child():
    """As nn.MultiheadAttention takes the weight of its last layer."""
    whole = torch.nn.MultiheadAttention(8, 2).eval()
    with torch.device("meta"):
        empty = torch.nn.MultiheadAttention(8, 2).eval()
    x = torch.randn(3, 8)
    with torch.no_grad():
        expected = whole(x, x, x)[0]
        with on_demand(empty, lambda name, shape: whole.state_dict()[name]):
            assert torch.allclose(empty(x, x, x)[0], expected, atol=1e-6)


# What the last chapter runs on.


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
        monkeypatch.setattr(full_size, "best_device", lambda: torch.device(device))
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


def test_what_minisd_saves_is_found(machine, small):
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
