"""Write the Rosetta table: every tensor of Stable Diffusion v1.5 by its three names.

    python book/rosetta.py

Writes book/rosetta.md, a page of the book, and book/_static/rosetta.csv, the complete list. A test
fails if they are not what this script would write. No weights are needed: the networks are built
on the meta device. The original names are those of the file `v1-5-pruned-emaonly.ckpt`.
"""

import csv
import io
import re
from os.path import commonprefix
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from minisd.full_size import CONFIGS, NETWORKS
from minisd.lab.results import table
from minisd.layers import ResnetBlock

BOOK = Path(__file__).parent
TITLES = {"text_encoder": "Text encoder", "unet": "U-Net", "vae": "Autoencoder"}
PREFIXES = {  # of the original names
    "text_encoder": "cond_stage_model.transformer.",
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
}
EXAMPLES = {  # blocks whose inside is shown
    "text_encoder": ["blocks.0"],
    "unet": ["down.3.resnet", "down.3.attention"],
    "vae": ["encoder.down.3", "encoder.mid.1"],
}
BLOCK = re.compile(
    r"(?:encoder|decoder)\.(?:down|mid|up)\.\d+|(?:down|up)\.\d+\.(?:resnet|attention|resample|conv)"
    r"|mid\.\w+|blocks\.\d+|(?:encoder|decoder)\.\w+|\w+"
)
IN_RESNET = {
    "norm_1": "in_layers.0", "conv_1": "in_layers.2", "time_proj": "emb_layers.1",
    "norm_2": "out_layers.0", "conv_2": "out_layers.3", "shortcut": "skip_connection",
}  # fmt: skip
AT_THE_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
IN_VAE = {  # diffusers -> original, one after the other
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0": "mid.attn_1",
    r"down_blocks\.(\d)": r"down.\1",
    r"up_blocks\.(\d)": lambda found: f"up.{3 - int(found[1])}",  # counted from the picture
    r"resnets\.(\d)": r"block.\1",
    r"(down|up)samplers\.0": r"\1sample",
    r"conv_shortcut": "nin_shortcut",
    r"conv_norm_out": "norm_out",
    r"group_norm": "norm",
    r"to_out\.0": "proj_out",
    r"to_([qkv])": r"\1",
}


class Row(NamedTuple):
    """One tensor: its part, its three names, its shape and its numbers."""

    part: str
    minisd: str
    diffusers: str
    original: str
    shape: str
    parameters: int


def original_name(part: str, ours: str, theirs: str) -> str:
    """Return the name of a tensor in the original file, without the prefix of its part."""
    if part == "text_encoder":
        return theirs
    if part == "vae":
        for pattern, name in IN_VAE.items():
            theirs = re.sub(pattern, name, theirs)
        return theirs
    layer, _, kind = ours.rpartition(".")
    if layer in AT_THE_ENDS:
        return f"{AT_THE_ENDS[layer]}.{kind}"
    side, place, *inside = layer.split(".")
    if side == "mid":
        number = ("resnet_1", "attention", "resnet_2").index(place)
        block, what, inside = "middle_block", place.removesuffix(f"_{number // 2 + 1}"), inside
    else:
        first = {"down": 1, "up": 0}[side]  # there conv_in is input block 0
        block = f"{'input' if side == 'down' else 'output'}_blocks.{int(place) + first}"
        what, *inside = inside
        number = {"resnet": 0, "attention": 1, "conv": 0, "resample": 2}[what]
        if what == "resample" and int(place) < 3:  # the lowest level has no attention
            number = 1
    if what == "resnet":
        tail = IN_RESNET[inside[0]]
    elif what == "attention":  # inside, diffusers has kept the names
        tail = re.sub(r".*attentions\.\d\.", "", theirs).rpartition(".")[0]
    else:
        tail = "op" if what == "conv" else "conv"
    return f"{block}.{number}.{tail}.{kind}"


def build(part: str) -> nn.Module:
    """Return one of v1.5's networks, without memory for its weights."""
    with torch.device("meta"):
        return NETWORKS[part](CONFIGS[part])


def rows(part: str) -> list[Row]:
    """Return a row for every tensor of a part."""
    network = build(part)
    names = network.diffusers_names()
    return [
        Row(
            part, ours, names[ours], PREFIXES[part] + original_name(part, ours, names[ours]),
            " x ".join(map(str, tensor.shape)), tensor.numel(),
        )
        for ours, tensor in network.state_dict().items()
    ]  # fmt: skip


def shared(names: list[str]) -> str:
    """Return the dotted path that all these names begin with."""
    return ".".join(commonprefix([name.split(".")[:-1] for name in names]))


def what_is(module: nn.Module) -> str:
    """Name a block and, where it changes the width, its widths."""
    kind = type(module).__name__
    if isinstance(module, ResnetBlock):
        return f"{kind}, {module.conv_1.in_channels} → {module.conv_1.out_channels}"
    if isinstance(module, nn.Conv2d):
        return f"{kind}, {module.in_channels} → {module.out_channels}"
    return kind


def section(part: str) -> list[str]:
    """Return the part of the page about one network."""
    network, tensors = build(part), rows(part)
    blocks: dict[str, list[Row]] = {}
    for row in tensors:
        blocks.setdefault(BLOCK.match(row.minisd)[0], []).append(row)
    prefix = PREFIXES[part]
    lines = [
        [
            f"`{name}`",
            f"`{shared([row.diffusers for row in block])}`",
            f"`{shared([row.original for row in block]).removeprefix(prefix)}`",
            what_is(network.get_submodule(name)),
            len(block),
            f"{sum(row.parameters for row in block):,}",
        ]
        for name, block in blocks.items()
    ]
    total = f"{sum(row.parameters for row in tensors):,}"
    page = [
        f"## {TITLES[part]}",
        "",
        f"`minisd.{type(network).__name__}`, in the folder `{part}/`: {len(tensors)} tensors, "
        f"{total} parameters. The original names begin with `{prefix}`.",
        "",
        *table(
            ["minisd", "diffusers", "original", "what", "tensors", "parameters"], "llllrr", lines
        ),
        "",
    ]
    for name in EXAMPLES[part]:
        block = blocks[name]
        paths = [shared([getattr(row, side) for row in block]) for side in Row._fields[1:4]]
        inside = [
            [
                *(f"`{row[1 + i].removeprefix(paths[i] + '.')}`" for i in range(3)),
                row.shape.replace("x", "×"),
            ]
            for row in block
        ]
        page += [
            f"Inside `{type(network.get_submodule(name)).__name__}`, here `{name}`:",
            "",
            *table(["minisd", "diffusers", "original", "shape"], "llll", inside),
            "",
        ]
    return page


HEAD = """# The Rosetta table

<!-- Written by book/rosetta.py; do not edit by hand. -->

The weights of Stable Diffusion v1.5 are known under three names: those of this book's classes,
those of the folders of diffusers (and of transformers, for the text encoder), and those of the
original file. Here they stand side by side. In minisd and in diffusers every tensor has the same
shape; the original has the attention of the autoencoder as 1 × 1 convolutions. How the table is
used, and why it is all that it takes, is told in {{doc}}`chapter 13 </chapters/13_growing_up>`.

The tables list blocks, {numbers} parameters in all. The complete list of {tensors} tensors is in
{{download}}`rosetta.csv <_static/rosetta.csv>`.
"""


def page() -> str:
    """Return book/rosetta.md."""
    every = [row for part in NETWORKS for row in rows(part)]
    numbers = sum(row.parameters for row in every)
    lines = [HEAD.format(numbers=f"{numbers:,}", tensors=f"{len(every):,}")]
    for part in ("unet", "vae", "text_encoder"):
        lines += section(part)
    return "\n".join(lines).rstrip() + "\n"


def complete_list() -> str:
    """Return book/_static/rosetta.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(row for part in NETWORKS for row in rows(part))
    return text.getvalue()


FILES = {BOOK / "rosetta.md": page, BOOK / "_static" / "rosetta.csv": complete_list}

if __name__ == "__main__":
    for path, write in FILES.items():
        path.write_text(write(), encoding="utf-8")
        print(path)
