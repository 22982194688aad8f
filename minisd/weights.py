"""Chapter "Growing up": the names of the same tensors in minisd and in diffusers' folders.

Every tensor has the same shape in both, so a renaming is all it takes to load the weights of
Stable Diffusion v1.5 into minisd's classes, and to give minisd's weights to diffusers and to
transformers, whose CLIP reads the prompt there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minisd.clip import CLIPTextConfig
    from minisd.unet import UNetConfig


@dataclass(frozen=True)
class DiffusersFormat:
    """How diffusers stores one kind of model: class names, file, config and tensor names.

    `current_name` turns a name that other versions wrote into that of `key_map`, or into None for
    a tensor that is no weight.
    """

    class_names: tuple[str, ...]
    file: str
    read_config: Callable[[dict[str, Any]], dict[str, Any]]
    write_config: Callable[[Any], dict[str, Any]]
    key_map: Callable[[Any, Iterable[str]], dict[str, str]]
    current_name: Callable[[str], str | None] = str


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


def unet_key_map(config: "UNetConfig", keys: Iterable[str]) -> dict[str, str]:
    """Map each of the U-Net's tensor names to diffusers' name for it.

    minisd numbers the blocks along the way down and up; diffusers nests them in levels.
    """
    prefixes = _unet_block_prefixes(config)
    words = config.context_dim is not None
    mapping = {}
    for key in keys:
        prefix = next((p for p in prefixes if key.startswith(p)), None)
        if prefix is None:  # conv_in, time_embedding, norm_out, conv_out
            mapping[key] = key.replace("norm_out.", "conv_norm_out.")
            continue
        name = key.removeprefix(prefix)
        if not words:  # SelfAttention2d is diffusers' Attention, one level flatter
            name = name.replace("norm.", "group_norm.").removeprefix("attention.")
        for ours, theirs in _RENAMED.items():
            name = name.replace(ours, theirs)
        mapping[key] = prefixes[prefix] + name
    return mapping


def _unet_block_prefixes(config: "UNetConfig") -> dict[str, str]:
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


def unet_config_from_diffusers(raw: dict[str, Any]) -> dict[str, Any]:
    """Turn the config.json of diffusers' UNet2DModel or UNet2DConditionModel into UNetConfig's.

    Raises ValueError for settings that minisd's U-Net does not have.
    """
    words = raw["_class_name"] == "UNet2DConditionModel"
    fixed = _FIXED | {"mid_block_type": _MID_BLOCKS[words]}
    for name, value in raw.items():
        allowed = (fixed[name],) if name in fixed else (None, False)
        if not name.startswith("_") and name not in _READ | _IDLE and value not in allowed:
            raise ValueError(f"{name}={value!r} is not supported: minisd has {allowed[0]!r}")
    channels, down = tuple(raw["block_out_channels"]), tuple(raw["down_block_types"])
    unknown = set(down) - {_DOWN_BLOCKS[False, words], _DOWN_BLOCKS[True, words]}
    if unknown:
        raise ValueError(f"block types {sorted(unknown)} are not supported")
    attention = tuple("Attn" in name for name in down)
    if tuple("Attn" in name for name in raw["up_block_types"]) != attention[::-1]:
        raise ValueError("attention must stand at the same levels on the way down and up")
    heads = raw.get("attention_head_dim", 8)
    if not words:  # there it is what its name says: the channels of one head; None for all
        widths = {w for w, here in zip(channels, attention, strict=True) if here} | {channels[-1]}
        if heads and len(widths) > 1:
            raise ValueError(f"heads of one width at widths {sorted(widths)} are not supported")
        heads = channels[-1] // heads if heads else 1
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


def unet_config_to_diffusers(config: "UNetConfig") -> dict[str, Any]:
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


def clip_text_key_map(config: "CLIPTextConfig", keys: Iterable[str]) -> dict[str, str]:
    """Map each of the text transformer's tensor names to the one in transformers' files."""
    mapping = {}
    for key in keys:
        name = key
        for ours, theirs in _CLIP_RENAMED.items():
            name = name.replace(ours, theirs)
        mapping[key] = f"text_model.{name}"
    return mapping


def clip_text_current_name(name: str) -> str | None:
    """Drop `position_ids` (0, 1, 2 ...) of old files; add the prefix that transformers 5 drops."""
    name = f"text_model.{name.removeprefix('text_model.')}"
    return None if name.endswith(".position_ids") else name


def clip_text_config_from_transformers(raw: dict[str, Any]) -> dict[str, Any]:
    """Turn the config.json of transformers' CLIPTextModel into CLIPTextConfig's.

    Raises ValueError for settings that minisd's text transformer does not have.
    """
    width = raw["hidden_size"]
    for name, value in (_CLIP_FIXED | {"intermediate_size": 4 * width}).items():
        if raw.get(name, value) != value:
            raise ValueError(f"{name}={raw[name]!r} is not supported: minisd has {value!r}")
    end = raw.get("eos_token_id", 2)
    return {
        "vocab_size": raw["vocab_size"],
        "max_length": raw["max_position_embeddings"],
        "dim": width,
        "num_layers": raw["num_hidden_layers"],
        "num_heads": raw["num_attention_heads"],
        "eos_token_id": raw["vocab_size"] - 1 if end == 2 else end,  # 2: an old slip, not the end
    }


def clip_text_config_to_transformers(config: "CLIPTextConfig") -> dict[str, Any]:
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
    current_name=clip_text_current_name,
)
