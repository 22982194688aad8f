"""minisd's autoencoder and diffusers' AutoencoderKL are the same function, from the same files."""

from dataclasses import replace

import diffusers
import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from minisd import AutoencoderKL, VAEConfig
from minisd.layers import ResnetBlock, SelfAttention2d, Upsample
from minisd.vae import DiagonalGaussian
from minisd.weights import vae_config_from_diffusers, vae_config_to_diffusers

TOLERANCE = 1e-5  # largest absolute difference, float32
FILE = "diffusion_pytorch_model.safetensors"

CONFIGS = [
    VAEConfig(16, 3, 4, (8, 16), 1, norm_num_groups=4, patch_size=1, scaling_factor=0.18215),
    VAEConfig(16, 1, 2, (12, 12, 24), 2, norm_num_groups=6, patch_size=1, scaling_factor=1.0),
    VAEConfig(32, 3, 4, (8, 16, 16, 8), 2, norm_num_groups=8, patch_size=1, scaling_factor=0.13),
    VAEConfig(8, 4, 16, (8,), 3, norm_num_groups=2, patch_size=1, scaling_factor=2.5),
]


def pair(config, folder, generator):
    """A random autoencoder of minisd, and what diffusers reads from the folder it is saved in."""
    ours = randomise(AutoencoderKL(config), generator).eval()
    ours.save_pretrained(folder, format="diffusers")
    theirs = diffusers.AutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)
    return ours, theirs.eval()


@torch.no_grad()
def difference(ours, theirs, image):
    """Return the largest absolute difference of mean, log variance, latents and image.

    After checking that there is something to compare. diffusers leaves the scaling to its caller.
    """
    factor = theirs.config.scaling_factor
    posterior, expected = ours.posterior(image), theirs.encode(image).latent_dist
    latents = expected.mode() * factor
    decoded = theirs.decode(latents / factor).sample
    pairs = [
        (posterior.mean, expected.mean),
        (posterior.logvar, expected.logvar),
        (ours.encode(image), latents),
        (ours.decode(latents), decoded),
    ]
    assert min(wanted.std() for _, wanted in pairs) > 0.03
    return max((got - wanted).abs().max().item() for got, wanted in pairs)


def image_for(config, generator, b=2, tall=1, wide=1):
    side = config.sample_size
    return torch.rand(b, config.in_channels, tall * side, wide * side, generator=generator) * 2 - 1


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_diffusers_opens_our_folder_and_agrees(config, tmp_path, generator):
    ours, theirs = pair(config, tmp_path, generator)
    for b, tall, wide in ((2, 1, 1), (1, 1, 2), (3, 2, 1)):
        assert difference(ours, theirs, image_for(config, generator, b, tall, wide)) <= TOLERANCE


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_we_open_diffusers_folder_and_agree(config, tmp_path, generator):
    """The folder is written by a model that diffusers itself has built from its own config."""
    theirs = diffusers.AutoencoderKL.from_config(vae_config_to_diffusers(config))
    theirs = randomise(theirs, generator).eval()
    theirs.save_pretrained(tmp_path)
    ours = AutoencoderKL.from_pretrained(tmp_path)
    assert ours.config == config
    assert difference(ours, theirs, image_for(config, generator)) <= TOLERANCE


@torch.no_grad()
def test_samples_and_kl_are_those_of_diffusers(tmp_path, generator):
    ours, theirs = pair(CONFIGS[0], tmp_path, generator)
    image = image_for(CONFIGS[0], generator)
    posterior, expected = ours.posterior(image), theirs.encode(image).latent_dist
    a, b = (torch.Generator().manual_seed(7) for _ in range(2))
    assert (posterior.sample(a) - expected.sample(b)).abs().max() <= TOLERANCE
    assert torch.allclose(posterior.kl(), expected.kl(), rtol=1e-5)


@st.composite
def configs(draw):
    groups, levels = draw(st.sampled_from([1, 2, 4])), draw(st.integers(1, 4))
    return VAEConfig(
        sample_size=8,
        in_channels=draw(st.integers(1, 4)),
        latent_channels=draw(st.integers(1, 6)),
        channels=tuple(groups * draw(st.integers(2, 8)) for _ in range(levels)),
        layers_per_block=draw(st.integers(1, 3)),
        norm_num_groups=groups,
        patch_size=1,
        scaling_factor=draw(st.floats(0.1, 5)),
    )


@settings(max_examples=10)
@given(config=configs(), seed=st.integers(0, 2**32))
def test_any_small_config_agrees(config, seed, tmp_path_factory):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = pair(config, tmp_path_factory.mktemp("vae"), generator)
    image = image_for(config, generator, tall=2, wide=2)
    assert difference(ours, theirs, image) <= TOLERANCE


# Older files.

OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("convolutions", [False, True], ids=["linear", "1x1 convolution"])
def test_files_with_the_old_names_of_the_attention_are_read(convolutions, tmp_path, generator):
    ours, theirs = pair(CONFIGS[0], tmp_path, generator)
    old = {}
    for key, tensor in load_file(tmp_path / FILE).items():
        if ".attentions." in key:
            for new, name in OLD.items():
                key = key.replace(f".{new}.", f".{name}.")
            if convolutions and tensor.ndim == 2:
                tensor = tensor[:, :, None, None].contiguous()
        old[key] = tensor
    assert sum(any(f".{name}." in key for name in OLD.values()) for key in old) == 16
    save_file(old, tmp_path / FILE)
    again = AutoencoderKL.from_pretrained(tmp_path)
    assert difference(again, theirs, image_for(CONFIGS[0], generator)) <= TOLERANCE


def test_a_file_without_quant_conv_is_refused(tmp_path, generator):
    pair(CONFIGS[0], tmp_path, generator)
    tensors = {k: t for k, t in load_file(tmp_path / FILE).items() if "quant_conv" not in k}
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(ValueError, match="missing post_quant_conv.bias.*and 1 more"):
        AutoencoderKL.from_pretrained(tmp_path)


# Faults. Each is planted in a model that agrees without it, and must be seen at the tolerance.


def padded(*padding):
    """Pad before the halving as it should not be done."""
    return lambda self, x: F.pad(x, padding)


def smooth_upsample(self, x):
    return self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear"))


def no_shortcut(self, x, emb=None):
    return right_resnet(self, x, emb) - self.shortcut(x)


def no_attention(self, x, context=None):
    return x


def attention_without_residual(self, x, context=None):
    return right_attention(self, x, context) - x


def scaled_twice(self, image, generator=None):
    return self.config.scaling_factor * right_encode(self, image, generator)


def not_unscaled(self, latents):
    return self.reconstruct(latents)


def no_quant_conv(self, image):
    self.check_image(image)
    return DiagonalGaussian(self.encoder(image))


def no_post_quant_conv(self, z):
    return self.decoder(z)


def variance_first(self, image):
    moments = self.quant_conv(self.encoder(image))
    return DiagonalGaussian(moments.roll(self.config.latent_channels, dims=1))


right_resnet = ResnetBlock.forward
right_attention = SelfAttention2d.forward
right_encode = AutoencoderKL.encode

FAULTS = {
    "padding on the left and above": (nn.ZeroPad2d, "forward", padded(1, 0, 1, 0)),
    "padding on the left and below": (nn.ZeroPad2d, "forward", padded(1, 0, 0, 1)),
    "symmetric padding": (nn.ZeroPad2d, "forward", padded(1, 1, 1, 1)),
    "bilinear upsampling": (Upsample, "forward", smooth_upsample),
    "missing shortcut": (ResnetBlock, "forward", no_shortcut),
    "missing attention": (SelfAttention2d, "forward", no_attention),
    "missing residual": (SelfAttention2d, "forward", attention_without_residual),
    "scaled twice": (AutoencoderKL, "encode", scaled_twice),
    "never unscaled": (AutoencoderKL, "decode", not_unscaled),
    "missing quant_conv": (AutoencoderKL, "posterior", no_quant_conv),
    "missing post_quant_conv": (AutoencoderKL, "reconstruct", no_post_quant_conv),
    "variance before mean": (AutoencoderKL, "posterior", variance_first),
}


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory):
    """Two autoencoders that agree, and a picture on which they do."""
    generator = torch.Generator().manual_seed(0)
    both = pair(CONFIGS[0], tmp_path_factory.mktemp("agreeing"), generator)
    image = image_for(CONFIGS[0], generator)
    assert difference(*both, image) <= TOLERANCE
    return *both, image


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, agreeing, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])
    assert difference(*agreeing) > TOLERANCE


@pytest.mark.parametrize(
    "where", ["norm_1", "norm_2", "encoder.mid.1.norm", "decoder.mid.1.norm", "norm_out"]
)
def test_the_eps_of_the_unet_is_seen(where, tmp_path, generator):
    """With unit variances at the norms 1e-5 and 1e-6 differ by a few 1e-6; smaller ones tell."""
    ours = randomise(AutoencoderKL(CONFIGS[0]), generator).eval()
    with torch.no_grad():
        for name, p in ours.named_parameters():
            if any(part in name for part in ("conv_", "shortcut", "to_out", "conv.", "down.1.1.")):
                p.mul_(1.0 if "conv_out" in name or "quant" in name else 0.03)
    ours.save_pretrained(tmp_path, format="diffusers")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    image = image_for(CONFIGS[0], generator)
    assert difference(ours, theirs, image) <= TOLERANCE
    norms = [m for name, m in ours.named_modules() if where in name and hasattr(m, "eps")]
    assert norms and all(norm.eps == 1e-6 for norm in norms)
    for norm in norms:
        norm.eps = 1e-5
    assert difference(ours, theirs, image) > TOLERANCE


# The full size, without memory.

SD15_CONFIG = dict(  # vae/config.json of stable-diffusion-v1-5
    act_fn="silu",
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    in_channels=3,
    latent_channels=4,
    layers_per_block=2,
    norm_num_groups=32,
    out_channels=3,
    sample_size=512,
    up_block_types=["UpDecoderBlock2D"] * 4,
)


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return AutoencoderKL(VAEConfig.SD15), diffusers.AutoencoderKL(**SD15_CONFIG)


def test_stable_diffusion_has_our_names_and_shapes(full_size):
    ours, theirs = full_size
    names = ours.diffusers_names()
    renamed = {names[key]: tuple(t.shape) for key, t in ours.state_dict().items()}
    assert renamed == {key: tuple(t.shape) for key, t in theirs.state_dict().items()}
    assert len(renamed) == 248
    assert sum(p.numel() for p in ours.parameters()) == 83_653_863


def test_every_module_of_stable_diffusion_has_our_eps(full_size):
    ours, theirs = full_size
    for model in (ours, theirs):
        eps = [m.eps for m in model.modules() if hasattr(m, "eps")]
        assert len(eps) == 52 and set(eps) == {1e-6}


def test_stable_diffusion_config_is_read_and_written():
    raw = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", **SD15_CONFIG}
    assert VAEConfig(**vae_config_from_diffusers(raw)) == VAEConfig.SD15
    written = vae_config_to_diffusers(VAEConfig.SD15)
    assert written == {key: (raw | {"scaling_factor": 0.18215})[key] for key in written}
    with torch.device("meta"):
        again = diffusers.AutoencoderKL.from_config(written)
        wanted = diffusers.AutoencoderKL(**SD15_CONFIG)
    differing = {
        k for k in wanted.config if not k.startswith("_") and again.config[k] != wanted.config[k]
    }
    assert differing == set()


def test_one_class_for_both():
    """v1.5's autoencoder in small, and ours, differ in nothing but numbers."""
    small = AutoencoderKL(replace(VAEConfig.SD15, channels=(32, 64, 128, 128), sample_size=8))
    assert len(small.state_dict()) == 248


@pytest.mark.slow
def test_the_full_size_agrees(tmp_path, generator):
    ours, theirs = pair(VAEConfig.SD15, tmp_path, generator)
    image = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    assert difference(ours, theirs, image) <= TOLERANCE
