"""minisd's U-Net and diffusers' two U-Nets are the same function, from the same files."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from helpers import randomise
from hypothesis import given, settings
from hypothesis import strategies as st

import minisd.layers
from minisd import UNet, UNetConfig
from minisd.layers import (
    GEGLU,
    Attention,
    Downsample,
    ResnetBlock,
    SpatialTransformer,
    TimeEmbedding,
    TransformerBlock,
    Upsample,
)

TOLERANCE = 1e-5  # largest absolute difference, float32

WORDS = [
    UNetConfig(8, 4, 4, (16, 32), (True, False), 1, num_heads=4, norm_num_groups=8, context_dim=24),
    UNetConfig(8, 3, 2, (16, 16, 32), (False, True, True), 2, 2, norm_num_groups=4, context_dim=7),
    UNetConfig(16, 4, 4, (8, 16, 24, 32), (True, True, True, False), 2, 8, 4, context_dim=12),
    UNetConfig(8, 1, 1, (12, 24, 24), (False, False, False), 1, 3, 6, context_dim=5),
    UNetConfig(16, 2, 2, (8, 8, 8, 8), (True, False, True, True), 1, 1, 2, context_dim=9),
]
PLAIN = [
    UNetConfig(8, 1, 1, (16, 32), (False, True), 1, num_heads=4, norm_num_groups=8),
    UNetConfig(8, 3, 3, (16, 16, 32), (False, False, True), 2, 2, norm_num_groups=4),
    UNetConfig(16, 1, 2, (8, 16, 32, 32), (False, False, True, True), 2, 1, 8),
    UNetConfig(8, 2, 2, (12, 24, 24), (False, False, False), 3, 3, 6),
    UNetConfig(8, 1, 1, (8, 8), (True, True), 1, 8, 4),
]


def inputs(config, b, h, w, n, generator):
    """An image, times, and a context or None, for a U-Net of `config`."""
    x = torch.randn(b, config.in_channels, h, w, generator=generator)
    t = torch.randint(1000, (b,), generator=generator)
    words = config.context_dim
    return x, t, torch.randn(b, n, words, generator=generator) if words else None


def theirs_of(config, folder):
    kind = UNet2DModel if config.context_dim is None else UNet2DConditionModel
    return kind.from_pretrained(folder, low_cpu_mem_usage=False).eval()


@torch.no_grad()
def difference(ours, theirs, x, t, context):
    """Return the largest absolute difference, after checking that there is something to compare."""
    words = () if context is None else (context,)
    expected = theirs(x, t, *words).sample
    assert expected.std() > 0.05
    return (ours(x, t, context) - expected).abs().max().item()


def pair(config, folder, generator):
    """A random U-Net of minisd, and what diffusers reads from the folder it is saved in."""
    ours = randomise(UNet(config), generator).eval()
    ours.save_pretrained(folder, format="diffusers")
    return ours, theirs_of(config, folder)


@pytest.mark.parametrize("config", WORDS + PLAIN, ids=str)
def test_diffusers_opens_our_folder_and_agrees(config, tmp_path, generator):
    ours, theirs = pair(config, tmp_path, generator)
    size = config.sample_size
    for b, h, w, n in ((2, size, size, 7), (1, size, 2 * size, 1), (3, 2 * size, size, 13)):
        given_inputs = inputs(config, b, h, w, n, generator)
        assert difference(ours, theirs, *given_inputs) <= TOLERANCE


@pytest.mark.parametrize("config", WORDS + PLAIN, ids=str)
def test_we_open_diffusers_folder_and_agree(config, tmp_path, generator):
    """The folder is written by a model that diffusers itself has built from its own config."""
    UNet(config).save_pretrained(tmp_path / "config", format="diffusers")
    kind = UNet2DModel if config.context_dim is None else UNet2DConditionModel
    theirs = kind.from_config(kind.load_config(tmp_path / "config"))
    theirs = randomise(theirs, generator).eval()
    theirs.save_pretrained(tmp_path / "theirs")

    ours = UNet.from_pretrained(tmp_path / "theirs")
    assert ours.config == config
    for t in (0, 1, 999):
        x, _, context = inputs(config, 2, config.sample_size, config.sample_size, 5, generator)
        assert difference(ours, theirs, x, torch.tensor(t), context) <= TOLERANCE


@st.composite
def configs(draw):
    heads, groups = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4]))
    levels = draw(st.integers(2, 4))
    words = draw(st.booleans())
    widths = [4 * draw(st.integers(1, 4)) for _ in range(levels)]
    attention = draw(st.lists(st.booleans(), min_size=levels, max_size=levels))
    if not words:  # diffusers' UNet2DModel needs equal widths where there is attention
        widths = [widths[-1] if here else w for w, here in zip(widths, attention, strict=True)]
    return UNetConfig(
        sample_size=8,
        in_channels=draw(st.integers(1, 4)),
        out_channels=draw(st.integers(1, 4)),
        channels=tuple(widths),
        attention=tuple(attention),
        layers_per_block=draw(st.integers(1, 2)),
        num_heads=heads,
        norm_num_groups=groups,
        context_dim=draw(st.integers(1, 12)) if words else None,
    )


@pytest.mark.parametrize("dim", [8, 12, 320])
def test_the_timestep_embedding_is_the_same_to_the_last_bit(dim):
    """Angles reach 999 radians, so the last bit of a frequency is worth 6e-5 in the cosine."""
    t = torch.arange(1000)
    theirs = get_timestep_embedding(t, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.equal(minisd.layers.timestep_embedding(t, dim), theirs)


@settings(max_examples=12)
@given(config=configs(), n=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_any_small_config_agrees(config, n, seed, tmp_path_factory):
    """In float64: a drawn group may have but one value, and 1 / sqrt(eps) magnifies rounding."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = pair(config, tmp_path_factory.mktemp("unet"), generator)
    x, t, context = inputs(config, 2, 8, 8, n, generator)
    context = None if context is None else context.double()
    found = difference(ours.double(), theirs.double(), x.double(), t, context)
    assert found <= 1e-10


# Faults. Each is planted in a model that agrees without it, and must be seen at the tolerance.


def swapped_geglu(self, x):
    gate, value = self.proj(x).chunk(2, dim=-1)
    return value * F.gelu(gate)


def tanh_geglu(self, x):
    value, gate = self.proj(x).chunk(2, dim=-1)
    return value * F.gelu(gate, approximate="tanh")


def sine_first(t, dim):
    return right_embedding(t, dim).roll(dim // 2, dims=-1)


def late_frequencies(t, dim):
    """diffusers' freq_shift=1."""
    exponents = torch.arange(dim // 2) / (dim // 2 - 1)
    angles = t.float()[:, None] * 10_000.0**-exponents
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def no_activation_of_time(self, t):
    return self.linear_2(self.linear_1(right_embedding(t, self.dim)))


def no_shortcut(self, x, emb):
    return right_resnet(self, x, emb) - self.shortcut(x)


def raw_time_in_resnet(self, x, emb):
    h = self.conv_1(F.silu(self.norm_1(x))) + self.time_proj(emb)[:, :, None, None]
    return self.shortcut(x) + self.conv_2(F.silu(self.norm_2(h)))


def time_after_second_norm(self, x, emb):
    h = self.norm_2(self.conv_1(F.silu(self.norm_1(x))))
    h = h + self.time_proj(F.silu(emb))[:, :, None, None]
    return self.shortcut(x) + self.conv_2(F.silu(h))


def one_head(self, x, context=None):
    single = copy.copy(self)
    single.num_heads = 1
    return right_attention(single, x, context)


def unscaled_attention(self, x, context=None):
    scaled = copy.copy(self)
    scaled._modules = {**self._modules, "to_q": lambda x: self.to_q(x) * 1.01}
    return right_attention(scaled, x, context)


def cross_before_self(self, x, context):
    x = x + self.cross_attention(self.norm_2(x), context)
    x = x + self.self_attention(self.norm_1(x))
    return x + self.feed_forward(self.norm_3(x))


def no_transformer_residual(self, x, context):
    return right_transformer(self, x, context) - x


def vae_padding(self, x, emb=None, context=None):
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.conv.weight, self.conv.bias, stride=2)


def smooth_upsample(self, x):
    return self.conv(F.interpolate(x, scale_factor=2.0, mode="bilinear"))


def unet_forward(take_skip=list.pop, join=lambda x, skip: [x, skip], activation=F.silu):
    """UNet.forward, in which one line can be made wrong."""

    def forward(self, x, t, context=None):
        emb = self.time_embedding(self.check_inputs(x, t, context))
        x = self.conv_in(x)
        skips = [x]
        for block in self.down:
            x = block(x, emb, context)
            skips.append(x)
        x = self.mid(x, emb, context)
        for block in self.up:
            x = block(torch.cat(join(x, take_skip(skips)), dim=1), emb, context)
        return self.conv_out(activation(self.norm_out(x)))

    return forward


def neighbouring_skip(skips):
    """Take the last but one where it has the same shape as the last."""
    fits = len(skips) > 1 and skips[-1].shape == skips[-2].shape
    return skips.pop(-2 if fits else -1)


right_embedding = minisd.layers.timestep_embedding
right_resnet = ResnetBlock.forward
right_attention = Attention.forward
right_transformer = SpatialTransformer.forward

FAULTS = {
    "GEGLU halves swapped": (GEGLU, "forward", swapped_geglu),
    "GEGLU with the tanh approximation": (GEGLU, "forward", tanh_geglu),
    "sine before cosine": (minisd.layers, "timestep_embedding", sine_first),
    "frequencies shifted": (minisd.layers, "timestep_embedding", late_frequencies),
    "time embedding without activation": (TimeEmbedding, "forward", no_activation_of_time),
    "missing shortcut": (ResnetBlock, "forward", no_shortcut),
    "time without activation in a block": (ResnetBlock, "forward", raw_time_in_resnet),
    "time after the second norm": (ResnetBlock, "forward", time_after_second_norm),
    "one head instead of two": (Attention, "forward", one_head),
    "attention scaled wrongly by one per cent": (Attention, "forward", unscaled_attention),
    "cross-attention before self-attention": (TransformerBlock, "forward", cross_before_self),
    "missing residual": (SpatialTransformer, "forward", no_transformer_residual),
    "asymmetric padding": (Downsample, "forward", vae_padding),
    "bilinear upsampling": (Upsample, "forward", smooth_upsample),
    "skips in the wrong order": (UNet, "forward", unet_forward(take_skip=neighbouring_skip)),
    "skip before x": (UNet, "forward", unet_forward(join=lambda x, skip: [skip, x])),
    "no activation at the end": (UNet, "forward", unet_forward(activation=lambda x: x)),
}
FAULTY = UNetConfig(8, 2, 2, (8, 8, 16), (True, True, False), 2, 2, 4, context_dim=6)


@pytest.fixture(scope="module")
def agreeing(tmp_path_factory):
    """Two networks that agree, and what they agree on."""
    generator = torch.Generator().manual_seed(0)
    both = pair(FAULTY, tmp_path_factory.mktemp("agreeing"), generator)
    given_inputs = inputs(FAULTY, 2, 8, 8, 5, generator)
    assert difference(*both, *given_inputs) <= TOLERANCE
    return *both, *given_inputs


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, agreeing, monkeypatch):
    monkeypatch.setattr(*FAULTS[fault])
    assert difference(*agreeing) > TOLERANCE


def test_the_planted_forward_is_right_when_nothing_is_made_wrong(agreeing, monkeypatch):
    monkeypatch.setattr(UNet, "forward", unet_forward())
    assert difference(*agreeing) <= TOLERANCE


EPS_FAULTS = {  # which norms, and the eps of another part of the system
    "spatial transformer": (WORDS[0], "attention.norm", 1e-5),
    "transformer block": (WORDS[0], "block.norm", 1e-6),
    "self-attention": (PLAIN[4], "attention.norm", 1e-6),
    "first norm of a residual block": (PLAIN[0], "resnet.norm_1", 1e-6),
    "second norm of a residual block": (PLAIN[0], "resnet.norm_2", 1e-6),
    "last norm": (PLAIN[0], "norm_out", 1e-6),
}


@pytest.mark.parametrize("fault", EPS_FAULTS)
def test_a_wrong_eps_is_seen(fault, tmp_path, generator):
    """With activations of small variance, where eps weighs: what feeds the norms is scaled down."""
    config, where, wrong_eps = EPS_FAULTS[fault]
    ours = randomise(UNet(config), generator).eval()
    with torch.no_grad():
        for name, p in ours.named_parameters():
            if any(part in name for part in ("conv_", "shortcut", "proj", "to_out", "conv.")):
                p.mul_(0.03)
            if name.startswith("conv_out"):
                p.div_(0.03)
    ours.save_pretrained(tmp_path, format="diffusers")
    theirs = theirs_of(config, tmp_path)
    given_inputs = inputs(config, 2, 8, 8, 5, generator)
    assert difference(ours, theirs, *given_inputs) <= TOLERANCE
    norms = [m for name, m in ours.named_modules() if where in name and hasattr(m, "eps")]
    assert norms and all(m.eps != wrong_eps for m in norms)
    for norm in norms:
        norm.eps = wrong_eps
    assert difference(ours, theirs, *given_inputs) > TOLERANCE


# The full size, without memory.

SD15_CONFIG = dict(  # unet/config.json of stable-diffusion-v1-5
    act_fn="silu",
    attention_head_dim=8,
    block_out_channels=[320, 640, 1280, 1280],
    center_input_sample=False,
    cross_attention_dim=768,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    downsample_padding=1,
    flip_sin_to_cos=True,
    freq_shift=0,
    in_channels=4,
    layers_per_block=2,
    mid_block_scale_factor=1,
    norm_eps=1e-05,
    norm_num_groups=32,
    out_channels=4,
    sample_size=64,
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
)


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return UNet(UNetConfig.SD15), UNet2DConditionModel(**SD15_CONFIG)


def test_stable_diffusion_has_our_names_and_shapes(full_size):
    ours, theirs = full_size
    names = ours.diffusers_names()
    renamed = {names[key]: tuple(t.shape) for key, t in ours.state_dict().items()}
    assert renamed == {key: tuple(t.shape) for key, t in theirs.state_dict().items()}
    assert len(renamed) == 686
    assert sum(p.numel() for p in ours.parameters()) == 859_520_964


def test_stable_diffusion_config_is_read_and_written():
    from minisd.weights import unet_config_from_diffusers, unet_config_to_diffusers

    raw = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", **SD15_CONFIG}
    assert UNetConfig(**unet_config_from_diffusers(raw)) == UNetConfig.SD15
    written = unet_config_to_diffusers(UNetConfig.SD15)
    assert written == {key: raw[key] for key in written}
    with torch.device("meta"):
        again = UNet2DConditionModel.from_config(written)
        wanted = UNet2DConditionModel(**SD15_CONFIG)
    differing = {
        k for k in wanted.config if not k.startswith("_") and again.config[k] != wanted.config[k]
    }
    assert differing == set()


def test_every_module_of_stable_diffusion_has_our_eps(full_size):
    ours, theirs = full_size

    def eps_by_name(model):
        return {n: m.eps for n, m in model.named_modules() if hasattr(m, "eps")}

    names = {
        k.removesuffix(".weight"): v.removesuffix(".weight")
        for k, v in ours.diffusers_names().items()
    }
    assert {names[k]: eps for k, eps in eps_by_name(ours).items()} == eps_by_name(theirs)


def test_presets_differ_only_in_size():
    """One class: the digits' U-Net with words and four levels is v1.5's in small."""
    config = replace(UNetConfig.SD15, channels=(32, 64, 128, 128), sample_size=8)
    assert len(UNet(config).state_dict()) == 686
