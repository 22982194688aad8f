import pytest
import torch
from helpers import randomise

from minisd import DDPMScheduler, UNet, UNetConfig
from minisd.artist import Artist
from minisd.conditioning import label_context
from minisd.pipeline import ClassifierFreeGuidance, denoise

PLAIN = UNetConfig(8, 1, 1, (8, 8), (False, True), num_heads=2, norm_num_groups=4)
CLASSES = UNetConfig(8, 1, 1, (8, 8), (False, True), num_heads=2, norm_num_groups=4, context_dim=3)


def saved(folder, config):
    torch.manual_seed(0)
    randomise(UNet(config)).save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder)
    return Artist(folder)


@pytest.fixture
def of_labels(tmp_path):
    return saved(tmp_path, CLASSES)


def seeded():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize(
    ("negative", "empty"), [("", torch.zeros(1, 1, 3)), ("2", torch.tensor([[[0.0, 0, 1]]]))]
)
def test_labels_are_drawn_with_guidance(of_labels, negative, empty):
    (drawn,) = of_labels.draw(["0", "1"], 2, 4, seeded(), guidance=3.0, negative=negative)
    generator = seeded()
    x = torch.randn(2, 1, 8, 8, generator=generator)
    network = ClassifierFreeGuidance(of_labels.unet, empty, 3.0)
    context = label_context(torch.tensor([0, 1]), 3)
    *_, last = denoise(network, DDPMScheduler(), x, 4, generator, context)
    assert torch.equal(drawn, last.x)


def test_batches_share_the_prompts_in_order(of_labels):
    prompts = ["0", "1", "2"]
    sizes = [len(batch) for batch in of_labels.draw(prompts, 3, 2, seeded(), batch_size=2)]
    assert sizes == [2, 1]


@pytest.mark.parametrize(
    ("prompts", "negative", "message"),
    [
        (["3"], "", "labels 0 to 2, not '3'"),
        (["-1"], "", "not '-1'"),
        (["a seven"], "", "not 'a seven'"),
        (["0"], "seven", "not 'seven'"),
        (None, "", "needs a prompt"),
        (["0", "1"], "", "1 pictures have 2 prompts"),
    ],
)
def test_prompts_that_are_no_labels_raise(of_labels, prompts, negative, message):
    with pytest.raises(ValueError, match=message):
        next(of_labels.states(prompts, 1, 2, seeded(), negative=negative))


@pytest.mark.parametrize(("prompts", "negative"), [(["0"], ""), (None, "0")])
def test_a_model_without_prompts_takes_none(tmp_path, prompts, negative):
    artist = saved(tmp_path, PLAIN)
    with pytest.raises(ValueError, match="takes no prompt"):
        next(artist.states(prompts, 1, 2, seeded(), negative=negative))
    (drawn,) = artist.draw(None, 2, 2, seeded())
    assert drawn.shape == (2, 1, 8, 8)
