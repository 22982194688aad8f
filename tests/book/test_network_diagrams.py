"""The diagrams of networks show what the networks are."""

from xml.etree import ElementTree

import pytest
import torch

from minisd.book.network_diagrams import Block, chain_diagram, unet_blocks, unet_diagram
from minisd.unet import UNet, UNetConfig


def drawn(drawing, kind):
    root = ElementTree.fromstring(drawing.markup)
    return list(root.iter(f"{{http://www.w3.org/2000/svg}}{kind}"))


@pytest.mark.parametrize("config", [UNetConfig.MNIST, UNetConfig.POSTCARDS, UNetConfig.SD15])
def test_the_blocks_of_a_u_are_those_of_the_network(config):
    blocks, skips = unet_blocks(config)
    with torch.device("meta"):
        unet = UNet(config)
    entering = [block.resnet.conv_1.in_channels for block in unet.up]
    # what enters a block on the way up: the channels of the box before it, and of its skip
    assert [blocks[end - 1].channels + blocks[start].channels for start, end in skips] == entering
    assert [blocks[end].channels for _, end in skips] == [
        block.resnet.conv_1.out_channels for block in unet.up
    ]
    assert all(blocks[start].level == blocks[end].level for start, end in skips)
    assert sum(block.part == "down" for block in blocks) == len(unet.down)
    kinds = [type(module).__name__ for module in unet.modules()]
    assert sum(block.time for block in blocks) == kinds.count("ResnetBlock")
    attention = kinds.count("SelfAttention2d") + kinds.count("SpatialTransformer")
    assert sum(block.attention for block in blocks) == attention


def test_a_u_shows_its_boxes_its_skips_and_who_is_told_the_time():
    blocks, skips = unet_blocks(UNetConfig.MNIST)
    drawing = unet_diagram(blocks, skips, 28)
    assert len(drawn(drawing, "rect")) == len(blocks) + 1  # and the paper
    assert len(drawn(drawing, "circle")) == sum(block.time for block in blocks)
    texts = [node.text for node in drawn(drawing, "text")]
    assert {"28×28", "14×14", "7×7", "down", "middle", "up", "128"} <= set(texts)
    untold = unet_diagram([Block(*block[:4], time=False) for block in blocks], skips, 28)
    assert not drawn(untold, "circle") and "cosines" not in untold.markup


def test_a_chain_shows_its_boxes_shapes_jumps_and_feeds():
    drawing = chain_diagram(
        ["a\nb", "+"], ["s<1", "s2", "s3"], "two", jumps=[(0, 1, "j")], feeds={1: "f"}
    )
    assert {"a", "b", "+", "s<1", "s2", "s3", "j", "f"} == {n.text for n in drawn(drawing, "text")}
    with pytest.raises(ValueError, match="one shape more"):
        chain_diagram(["a"], ["x"], "one")
