import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minisd import AutoencoderKL, UNet, UNetConfig, VAEConfig
from minisd.weights import (
    unet_config_from_diffusers,
    unet_config_to_diffusers,
    vae_config_from_diffusers,
    vae_config_to_diffusers,
    vae_upgrade,
)

WORDS = UNetConfig(8, 4, 4, (8, 16, 16), (True, False, True), 2, 2, 4, context_dim=6)
PLAIN = replace(WORDS, attention=(False, True, True), context_dim=None)


@given(
    levels=st.integers(1, 5),
    layers=st.integers(1, 3),
    attention=st.lists(st.booleans(), min_size=5, max_size=5),
    words=st.booleans(),
)
def test_the_key_map_keeps_all_names_apart(levels, layers, attention, words):
    config = UNetConfig(
        sample_size=16,
        channels=(32,) * levels,
        attention=tuple(attention[:levels]),
        layers_per_block=layers,
        context_dim=4 if words else None,
    )
    with torch.device("meta"):
        unet = UNet(config)
    names = unet.diffusers_names()
    assert names.keys() == unet.state_dict().keys()
    assert len(set(names.values())) == len(names)
    assert UNetConfig(**unet_config_from_diffusers(unet_config_to_diffusers(config))) == config


@pytest.mark.parametrize("config", [WORDS, PLAIN], ids=["words", "plain"])
def test_the_config_survives_json(config):
    raw = json.loads(json.dumps(unet_config_to_diffusers(config)))
    assert UNetConfig(**unet_config_from_diffusers(raw)) == config


def test_heads_of_different_width_are_not_written():
    config = UNetConfig(channels=(32, 64, 64), attention=(True, False, True), num_heads=2)
    with pytest.raises(ValueError, match=r"\[32, 64\].*one width"):
        unet_config_to_diffusers(config)


@pytest.mark.parametrize(
    "change",
    [
        {"act_fn": "gelu"},
        {"flip_sin_to_cos": False},
        {"freq_shift": 1},
        {"norm_eps": 1e-6},
        {"use_linear_projection": True},
        {"only_cross_attention": True},
        {"dual_cross_attention": True},
        {"class_embed_type": "timestep"},
        {"num_class_embeds": 10},
        {"addition_embed_type": "text"},
        {"encoder_hid_dim": 5},
        {"resnet_time_scale_shift": "scale_shift"},
        {"center_input_sample": True},
        {"mid_block_scale_factor": 2},
        {"mid_block_type": "UNetMidBlock2D"},
        {"conv_in_kernel": 1},
        {"downsample_padding": 0},
        {"transformer_layers_per_block": 2},
        {"reverse_transformer_layers_per_block": [1, 1, 2]},
        {"resnet_skip_time_act": True},
        {"resnet_out_scale_factor": 2.0},
        {"time_embedding_type": "fourier"},
        {"time_embedding_dim": 64},
        {"time_embedding_act_fn": "silu"},
        {"timestep_post_act": "silu"},
        {"time_cond_proj_dim": 8},
        {"attention_type": "gated"},
        {"cross_attention_norm": "layer_norm"},
        {"mid_block_only_cross_attention": True},
        {"class_embeddings_concat": True},
        {"projection_class_embeddings_input_dim": 8},
        {"encoder_hid_dim_type": "text_proj"},
        {"a_setting_of_the_future": 3},
        {"attention_head_dim": [2, 4, 8]},
        {"down_block_types": ["DownBlock2D", "KDownBlock2D", "DownBlock2D"]},
        {"up_block_types": ["UpBlock2D", "UpBlock2D", "UpBlock2D"]},
    ],
    ids=str,
)
def test_what_minisd_does_not_have_is_refused(change):
    raw = unet_config_to_diffusers(WORDS) | change
    with pytest.raises(ValueError):
        UNetConfig(**unet_config_from_diffusers(raw))


@pytest.mark.parametrize(
    "change",
    [
        {"downsample_type": "resnet"},
        {"upsample_type": "resnet"},
        {"add_attention": False},
        {"attn_norm_num_groups": 2},
        {"mid_block_type": None},
        {"block_out_channels": [8, 16, 32]},  # heads of one width: 2 here and 4 there
        {"attention_head_dim": 5},
    ],
    ids=str,
)
def test_what_minisd_does_not_have_without_words_is_refused(change):
    raw = unet_config_to_diffusers(PLAIN) | change
    with pytest.raises(ValueError):
        UNetConfig(**unet_config_from_diffusers(raw))


def test_settings_that_change_nothing_are_accepted():
    idle = {
        "_diffusers_version": "0.42.1",
        "_name_or_path": "somewhere",
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "num_attention_heads": None,
        "upcast_attention": False,
        "addition_embed_type_num_heads": 64,
        "resnet_out_scale_factor": 1.0,
    }
    assert UNetConfig(**unet_config_from_diffusers(unet_config_to_diffusers(WORDS) | idle)) == WORDS


def test_no_head_width_means_one_head():
    raw = unet_config_to_diffusers(PLAIN) | {"attention_head_dim": None}
    assert UNetConfig(**unet_config_from_diffusers(raw)).num_heads == 1


# The autoencoder

VAE = VAEConfig(16, 3, 4, (8, 16), 2, norm_num_groups=4, patch_size=1, scaling_factor=0.3)


@given(levels=st.integers(1, 5), layers=st.integers(1, 6))
def test_the_key_map_of_the_autoencoder_keeps_all_names_apart(levels, layers):
    with torch.device("meta"):
        vae = AutoencoderKL(replace(VAE, channels=(8,) * levels, layers_per_block=layers))
    names = vae.diffusers_names()
    assert names.keys() == vae.state_dict().keys()
    assert len(set(names.values())) == len(names)


def test_the_config_of_the_autoencoder_survives_json():
    raw = json.loads(json.dumps(vae_config_to_diffusers(VAE)))
    assert VAEConfig(**vae_config_from_diffusers(raw)) == VAE


@pytest.mark.parametrize(
    "change",
    [
        {"act_fn": "relu"},
        {"out_channels": 1},
        {"shift_factor": 0.1},
        {"latents_mean": [0.0]},
        {"latents_std": [1.0]},
        {"use_quant_conv": False},
        {"use_post_quant_conv": False},
        {"mid_block_add_attention": False},
        {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
        {"up_block_types": ["UpDecoderBlock2D"]},
        {"scaling_factor": 0},
        {"sample_size": [16, 16]},
        {"a_setting_of_the_future": 3},
    ],
    ids=str,
)
def test_what_minisds_autoencoder_does_not_have_is_refused(change):
    with pytest.raises(ValueError):
        VAEConfig(**vae_config_from_diffusers(vae_config_to_diffusers(VAE) | change))


def test_settings_that_change_nothing_in_an_autoencoder_are_accepted():
    idle = {"force_upcast": True, "shift_factor": None, "latents_mean": None, "_name": "it"}
    idle |= {"use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True}
    assert VAEConfig(**vae_config_from_diffusers(vae_config_to_diffusers(VAE) | idle)) == VAE


def test_an_old_config_without_a_scaling_factor_means_that_of_v1_5():
    raw = vae_config_to_diffusers(VAE)
    del raw["scaling_factor"]
    assert vae_config_from_diffusers(raw)["scaling_factor"] == 0.18215


def test_patches_have_no_counterpart_in_diffusers(tmp_path):
    with pytest.raises(ValueError, match="patch_size 1, this one 4"):
        AutoencoderKL(VAEConfig.POSTCARDS).save_pretrained(tmp_path, format="diffusers")
    assert not list(tmp_path.iterdir())


def test_only_old_attention_is_upgraded():
    tensors = {
        "encoder.mid_block.attentions.0.query.weight": torch.ones(8, 8, 1, 1),
        "decoder.mid_block.attentions.0.proj_attn.bias": torch.ones(8),
        "decoder.mid_block.attentions.0.to_k.weight": torch.ones(8, 8),
        "quant_conv.weight": torch.ones(8, 8, 1, 1),
    }
    assert {key: tuple(t.shape) for key, t in vae_upgrade(tensors).items()} == {
        "encoder.mid_block.attentions.0.to_q.weight": (8, 8),
        "decoder.mid_block.attentions.0.to_out.0.bias": (8,),
        "decoder.mid_block.attentions.0.to_k.weight": (8, 8),
        "quant_conv.weight": (8, 8, 1, 1),
    }
