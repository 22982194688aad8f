"""v1.5 in its true size, as far as it fits into a fast test; the rest is benchmarks/sd15.py."""

import warnings
import weakref

import pytest
import torch
from helpers import TINY_SD15, randomise

import minisd
from minisd import (
    CLIPTextConfig,
    StableDiffusionPipeline,
)
from minisd.full_size import (
    CONFIGS,
    NETWORKS,
    on_demand,
    random_network,
    random_sd15,
    random_tensor,
    stand_in_tokenizer,
)


@pytest.fixture
def small(monkeypatch):
    for part, config in TINY_SD15.items():
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
    kind, config = NETWORKS[part], TINY_SD15[part]
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
