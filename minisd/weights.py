"""Chapter 13: the names of the same tensors in minisd and in diffusers' folders.

Every tensor has the same shape in both, so a renaming is all it takes to load the weights of
Stable Diffusion v1.5 into minisd's classes, and to give minisd's weights to diffusers and to
transformers, whose CLIP reads the prompt there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


def _as_they_are(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


@dataclass(frozen=True)
class DiffusersFormat:
    """How diffusers stores one kind of model: class names, file, config and tensor names.

    `upgrade` gives the tensors of its other versions the names and shapes of today.
    """

    class_names: tuple[str, ...]
    file: str
    read_config: Callable[[dict[str, Any]], dict[str, Any]]
    write_config: Callable[[Any], dict[str, Any]]
    key_map: Callable[[Any, Iterable[str]], dict[str, str]]
    upgrade: Callable[[dict[str, Tensor]], dict[str, Tensor]] = _as_they_are


_RENAMED = {  # inside a block: minisd -> diffusers, longest first where one contains another
    "resnet.": "",
    "norm_1.": "norm1.",
    "norm_2.": "norm2.",
    "norm_3.": "norm3.",
    "conv_1.": "conv1.",
    "conv_2.": "conv2.",
    "time_proj.": "time_emb_proj.",
    "shortcut.": "conv_shortcut.",
    "self_attention.": "attn1.",
    "cross_attention.": "attn2.",
    "feed_forward.0.": "ff.net.0.",
    "feed_forward.1.": "ff.net.2.",
    "block.": "transformer_blocks.0.",
    "to_out.": "to_out.0.",
}


def unet_key_map(config: Any, keys: Iterable[str]) -> dict[str, str]:
    """Map each of the U-Net's tensor names to diffusers' name for it.

    minisd numbers the blocks along the way down and up; diffusers nests them in levels.
    """
    return _key_map(keys, _unet_block_prefixes(config), words=config.context_dim is not None)


def _key_map(keys: Iterable[str], prefixes: dict[str, str], words: bool) -> dict[str, str]:
    """Rename each key: where its block is by `prefixes`, the rest by `_RENAMED`."""
    mapping = {}
    for key in keys:
        prefix = next((p for p in prefixes if key.startswith(p)), None)
        if prefix is None:  # conv_in, time_embedding, norm_out, conv_out, quant_conv
            mapping[key] = key.replace("norm_out.", "conv_norm_out.")
            continue
        name = key.removeprefix(prefix)
        if not words:  # SelfAttention2d is diffusers' Attention, one level flatter
            name = name.replace("norm.", "group_norm.").removeprefix("attention.")
        for ours, theirs in _RENAMED.items():
            name = name.replace(ours, theirs)
        mapping[key] = prefixes[prefix] + name
    return mapping


def _unet_block_prefixes(config: Any) -> dict[str, str]:
    """Map the prefix of each part of each block to diffusers' prefix."""
    last, layers = len(config.channels) - 1, config.layers_per_block
    prefixes = {}
    position = 0
    for level in range(last + 1):
        for i in range(layers):
            prefixes[f"down.{position}.resnet."] = f"down_blocks.{level}.resnets.{i}."
            prefixes[f"down.{position}.attention."] = f"down_blocks.{level}.attentions.{i}."
            position += 1
        if level != last:
            prefixes[f"down.{position}.conv."] = f"down_blocks.{level}.downsamplers.0.conv."
            position += 1
    prefixes["mid.resnet_1."] = "mid_block.resnets.0."
    prefixes["mid.attention."] = "mid_block.attentions.0."
    prefixes["mid.resnet_2."] = "mid_block.resnets.1."
    for position in range((last + 1) * (layers + 1)):
        level, i = divmod(position, layers + 1)
        prefixes[f"up.{position}.resnet."] = f"up_blocks.{level}.resnets.{i}."
        prefixes[f"up.{position}.attention."] = f"up_blocks.{level}.attentions.{i}."
        prefixes[f"up.{position}.resample.conv."] = f"up_blocks.{level}.upsamplers.0.conv."
    return prefixes


_DOWN_BLOCKS = {  # (attention here, words) -> diffusers' class
    (False, False): "DownBlock2D",
    (True, False): "AttnDownBlock2D",
    (False, True): "DownBlock2D",
    (True, True): "CrossAttnDownBlock2D",
}
_READ = {  # settings of diffusers' U-Nets that become UNetConfig's
    *("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block"),
    *("down_block_types", "up_block_types", "attention_head_dim", "norm_num_groups"),
    "cross_attention_dim",
}
_IDLE = {"addition_embed_type_num_heads", "num_train_timesteps", "upcast_attention"}
_FIXED = {  # settings which minisd has built in; any others must be off: None or False
    "act_fn": "silu",
    "add_attention": True,
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "resnet_out_scale_factor": 1.0,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "transformer_layers_per_block": 1,
    "upsample_type": "conv",
}
_MID_BLOCKS = {False: "UNetMidBlock2D", True: "UNetMidBlock2DCrossAttn"}  # words -> its class


def _check_lists(raw: dict[str, Any], *names: str) -> None:
    """Raise ValueError unless these settings are lists, all of one length that is not 0."""
    for name in names:
        if not isinstance(raw[name], list | tuple) or not raw[name]:
            raise ValueError(f"{name} must be a list, got {raw[name]!r:.80}")
        if len(raw[name]) != len(raw[names[0]]):
            raise ValueError(f"{name} must be as long as {names[0]}, got {raw[name]!r:.80}")


def _size(name: str, value: Any) -> int:
    """Return the value of a setting with which is calculated; raises ValueError for no size."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r:.80}")
    return value


def _refuse_unknown(raw: dict[str, Any], free: set[str], fixed: dict[str, Any]) -> None:
    """Raise ValueError for a setting that is neither free, nor as fixed, nor off."""
    for name, value in raw.items():
        allowed = (fixed[name],) if name in fixed else (None, False)
        if not name.startswith("_") and name not in free and value not in allowed:
            raise ValueError(f"{name}={value!r} is not supported: minisd has {allowed[0]!r}")


def unet_config_from_diffusers(raw: dict[str, Any]) -> dict[str, Any]:
    """Turn the config.json of diffusers' UNet2DModel or UNet2DConditionModel into UNetConfig's.

    Raises ValueError for settings that minisd's U-Net does not have.
    """
    words = raw["_class_name"] == "UNet2DConditionModel"
    _refuse_unknown(raw, _READ | _IDLE, _FIXED | {"mid_block_type": _MID_BLOCKS[words]})
    _check_lists(raw, "block_out_channels", "down_block_types", "up_block_types")
    channels, down = tuple(raw["block_out_channels"]), raw["down_block_types"]
    known = _DOWN_BLOCKS[False, words], _DOWN_BLOCKS[True, words]
    unknown = [name for name in down if name not in known]
    if unknown:
        raise ValueError(f"block types {unknown} are not supported")
    attention = tuple("Attn" in name for name in down)
    if tuple("Attn" in str(name) for name in raw["up_block_types"]) != attention[::-1]:
        raise ValueError("attention must stand at the same levels on the way down and up")
    heads = raw.get("attention_head_dim", 8)
    if not words:  # there it is what its name says: the channels of one head; None for all
        widths = [w for w, here in zip(channels, attention, strict=True) if here]
        if heads and any(width != channels[-1] for width in widths):
            raise ValueError(f"heads of one width at widths {widths} are not supported")
        last = _size("block_out_channels", channels[-1])
        heads = last // _size("attention_head_dim", heads) if heads else 1
    return {
        "sample_size": raw["sample_size"],
        "in_channels": raw["in_channels"],
        "out_channels": raw["out_channels"],
        "channels": channels,
        "attention": attention,
        "layers_per_block": raw["layers_per_block"],
        "num_heads": heads,
        "norm_num_groups": raw.get("norm_num_groups", 32),
        "context_dim": raw["cross_attention_dim"] if words else None,
    }


def unet_config_to_diffusers(config: Any) -> dict[str, Any]:
    """Turn a UNetConfig into the config.json of diffusers' UNet2DModel or UNet2DConditionModel.

    Raises ValueError where diffusers has no such U-Net (without words, its heads are equally wide
    at all levels; minisd's are equally many).
    """
    words = config.context_dim is not None
    widths = {w for w, here in zip(config.channels, config.attention, strict=True) if here}
    widths.add(config.channels[-1])
    if not words and len(widths) > 1:
        raise ValueError(
            f"attention at widths {sorted(widths)}: diffusers' UNet2DModel needs one width there"
        )
    down = [_DOWN_BLOCKS[here, words] for here in config.attention]
    raw = {
        "_class_name": UNET_FORMAT.class_names[words],
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.channels),
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "layers_per_block": config.layers_per_block,
        "attention_head_dim": config.num_heads
        if words
        else config.channels[-1] // config.num_heads,
        "norm_num_groups": config.norm_num_groups,
    }
    return raw | ({"cross_attention_dim": config.context_dim} if words else {})


UNET_FORMAT = DiffusersFormat(
    class_names=("UNet2DModel", "UNet2DConditionModel"),
    file="diffusion_pytorch_model.safetensors",
    read_config=unet_config_from_diffusers,
    write_config=unet_config_to_diffusers,
    key_map=unet_key_map,
)


_CLIP_RENAMED = {  # minisd -> transformers
    "token_embedding.": "embeddings.token_embedding.",
    "position_embedding.": "embeddings.position_embedding.",
    "blocks.": "encoder.layers.",
    "norm_1.": "layer_norm1.",
    "norm_2.": "layer_norm2.",
    "attention.to_": "self_attn.",
    "self_attn.q.": "self_attn.q_proj.",
    "self_attn.k.": "self_attn.k_proj.",
    "self_attn.v.": "self_attn.v_proj.",
    "self_attn.out.": "self_attn.out_proj.",
    "feed_forward.0.": "mlp.fc1.",
    "feed_forward.2.": "mlp.fc2.",
    "norm_out.": "final_layer_norm.",
}
_CLIP_FIXED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0}


def clip_text_key_map(config: Any, keys: Iterable[str]) -> dict[str, str]:
    """Map each of the text transformer's tensor names to the one in transformers' files."""
    mapping = {}
    for key in keys:
        name = key
        for ours, theirs in _CLIP_RENAMED.items():
            name = name.replace(ours, theirs)
        mapping[key] = f"text_model.{name}"
    return mapping


def clip_text_upgrade(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop `position_ids` (0, 1, 2 ...) of old files; add the prefix that transformers 5 drops."""
    return {
        f"text_model.{key.removeprefix('text_model.')}": tensor
        for key, tensor in tensors.items()
        if not key.endswith(".position_ids")
    }


def clip_text_config_from_transformers(raw: dict[str, Any]) -> dict[str, Any]:
    """Turn the config.json of transformers' CLIPTextModel into CLIPTextConfig's.

    Raises ValueError for settings that minisd's text transformer does not have.
    """
    width, vocab_size = (_size(name, raw[name]) for name in ("hidden_size", "vocab_size"))
    for name, value in (_CLIP_FIXED | {"intermediate_size": 4 * width}).items():
        if raw.get(name, value) != value:
            raise ValueError(f"{name}={raw[name]!r} is not supported: minisd has {value!r}")
    end = raw.get("eos_token_id", 2)
    return {
        "vocab_size": vocab_size,
        "max_length": raw["max_position_embeddings"],
        "dim": width,
        "num_layers": raw["num_hidden_layers"],
        "num_heads": raw["num_attention_heads"],
        "eos_token_id": vocab_size - 1 if end == 2 else end,  # 2: an old slip, not the end
    }


def clip_text_config_to_transformers(config: Any) -> dict[str, Any]:
    """Turn a CLIPTextConfig into the config.json of transformers' CLIPTextModel."""
    return _CLIP_FIXED | {
        "architectures": list(CLIP_TEXT_FORMAT.class_names),
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "hidden_size": config.dim,
        "intermediate_size": 4 * config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "bos_token_id": None,  # no part of the network; transformers' default may be out of range
        "eos_token_id": config.eos_token_id,
    }


CLIP_TEXT_FORMAT = DiffusersFormat(
    class_names=("CLIPTextModel",),
    file="model.safetensors",
    read_config=clip_text_config_from_transformers,
    write_config=clip_text_config_to_transformers,
    key_map=clip_text_key_map,
    upgrade=clip_text_upgrade,
)


def vae_key_map(config: Any, keys: Iterable[str]) -> dict[str, str]:
    """Map each of the autoencoder's tensor names to diffusers' name for it."""
    return _key_map(keys, _vae_block_prefixes(config), words=False)


def _vae_block_prefixes(config: Any) -> dict[str, str]:
    """Map the prefix of each block to diffusers' prefix; the resampling ends a level there."""
    layers, prefixes = config.layers_per_block, {}
    for half in ("encoder", "decoder"):
        for i, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
            prefixes[f"{half}.mid.{i}."] = f"{half}.mid_block.{name}."
    for level in range(len(config.channels)):
        down, up = level * (layers + 1), level * (layers + 2)  # where the level's blocks begin
        if level > 0:
            resample = f"_blocks.{level - 1}."
            prefixes[f"encoder.down.{down - 1}.1."] = f"encoder.down{resample}downsamplers.0.conv."
            prefixes[f"decoder.up.{up - 1}."] = f"decoder.up{resample}upsamplers.0."
        for i in range(layers):
            prefixes[f"encoder.down.{down + i}."] = f"encoder.down_blocks.{level}.resnets.{i}."
        for i in range(layers + 1):
            prefixes[f"decoder.up.{up + i}."] = f"decoder.up_blocks.{level}.resnets.{i}."
    return prefixes


_VAE_READ = {  # settings of diffusers' autoencoder that become VAEConfig's
    *("sample_size", "in_channels", "out_channels", "latent_channels", "block_out_channels"),
    *("down_block_types", "up_block_types", "layers_per_block", "norm_num_groups"),
    "scaling_factor",
}
_VAE_IDLE = {"force_upcast"}
_VAE_FIXED = {
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}


def vae_config_from_diffusers(raw: dict[str, Any]) -> dict[str, Any]:
    """Turn the config.json of diffusers' AutoencoderKL into VAEConfig's.

    Raises ValueError for settings that minisd's autoencoder does not have.
    """
    _refuse_unknown(raw, _VAE_READ | _VAE_IDLE, _VAE_FIXED)
    _check_lists(raw, "block_out_channels", "down_block_types", "up_block_types")
    levels = len(raw["block_out_channels"])
    for name, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        if list(raw[f"{name}_block_types"]) != [kind] * levels:
            raise ValueError(f"{name}_block_types must be {levels} times {kind!r}")
    if raw["out_channels"] != raw["in_channels"]:
        raise ValueError("in_channels and out_channels must be equal: it gives back what it took")
    return {
        "sample_size": raw["sample_size"],
        "in_channels": raw["in_channels"],
        "latent_channels": raw["latent_channels"],
        "channels": tuple(raw["block_out_channels"]),
        "layers_per_block": raw["layers_per_block"],
        "norm_num_groups": raw.get("norm_num_groups", 32),
        "patch_size": 1,
        "scaling_factor": raw.get("scaling_factor", 0.18215),  # v1.5's file does not say it
    }


def vae_config_to_diffusers(config: Any) -> dict[str, Any]:
    """Turn a VAEConfig into the config.json of diffusers' AutoencoderKL.

    Raises ValueError for patches of more than one pixel, which diffusers does not have.
    """
    if config.patch_size != 1:
        raise ValueError(f"diffusers' autoencoder has patch_size 1, this one {config.patch_size}")
    levels = len(config.channels)
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": config.sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "scaling_factor": config.scaling_factor,
    }


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def vae_upgrade(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the attention of older files today's names; 1x1 convolutions become linear layers."""
    upgraded = {}
    for key, tensor in tensors.items():
        if ".attentions." in key:
            for old, new in _OLD_ATTENTION.items():
                key = key.replace(f".{old}.", f".{new}.")
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor
        upgraded[key] = tensor
    return upgraded


VAE_FORMAT = DiffusersFormat(
    class_names=("AutoencoderKL",),
    file="diffusion_pytorch_model.safetensors",
    read_config=vae_config_from_diffusers,
    write_config=vae_config_to_diffusers,
    key_map=vae_key_map,
    upgrade=vae_upgrade,
)
