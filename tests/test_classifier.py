import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minisd.classifier import (
    Classifier,
    ClassifierConfig,
    classification_accuracies,
    classification_accuracy,
    random_warp,
)
from minisd.intervals import Accuracy, wilson_interval

SMALL = ClassifierConfig(channels=(8, 8), num_features=6)


def test_a_judge_answers_every_question():
    judge = Classifier(ClassifierConfig(3, (8, 16), 12, (("subject", 10), ("sky", 4))))
    images = torch.randn(5, 3, 16, 16)
    answers = judge(images)
    assert {name: tuple(logits.shape) for name, logits in answers.items()} == {
        "subject": (5, 10),
        "sky": (5, 4),
    }
    features = judge.features(images)
    assert features.shape == (5, 12)
    assert torch.equal(judge.heads["sky"](features), answers["sky"])


def test_the_activations_of_a_judge_lead_to_its_features():
    judge = Classifier(ClassifierConfig(3, (8, 16), 12, (("sky", 4),)))
    images = torch.randn(2, 3, 16, 16)
    large, small = judge.activations(images)
    assert (large.shape, small.shape) == ((2, 8, 8, 8), (2, 16, 4, 4))
    features = torch.nn.functional.silu(judge.project(small.amax(dim=(2, 3))))
    assert torch.equal(features, judge.features(images))


def test_the_judge_of_digits_has_the_size_of_its_card():
    judge = Classifier(ClassifierConfig())
    assert judge(torch.randn(2, 1, 28, 28))["digit"].shape == (2, 10)


def test_judge_accuracy_counts():
    judge = Classifier(SMALL).eval()
    images = torch.randn(30, 1, 28, 28)
    with torch.no_grad():
        answers = judge(images)["digit"].argmax(-1)
    labels = answers.clone()
    labels[:12] = (labels[:12] + 1) % 10
    accuracy = classification_accuracy(judge, images, labels)
    assert accuracy == Accuracy(18, 30) and accuracy.value == 0.6
    assert accuracy.interval == wilson_interval(18, 30)


def test_judge_accuracies_count_question_by_question():
    judge = Classifier(ClassifierConfig(3, (8, 8), 6, (("subject", 10), ("sky", 4)))).eval()
    images = torch.randn(30, 3, 16, 16)
    with torch.no_grad():
        labels = torch.stack([logits.argmax(-1) for logits in judge(images).values()], dim=1)
    labels[:12, 0] = (labels[:12, 0] + 1) % 10
    labels[3:6, 1] = (labels[3:6, 1] + 1) % 4
    expected = {"subject": Accuracy(18, 30), "sky": Accuracy(27, 30)}
    assert classification_accuracies(judge, images, labels) == expected


def test_a_judge_with_a_layout_sees_where():
    """One bright dot, left or right: the same to a global maximum, not to a grid of cells."""
    images = torch.zeros(2, 1, 32, 32)
    images[0, 0, 16, 8] = images[1, 0, 16, 24] = 5
    for layout in (1, 2, 4):
        torch.manual_seed(0)
        judge = Classifier(ClassifierConfig(1, (8, 8), 6, (("place", 2),), layout)).eval()
        assert judge.project.in_features == 8 * layout**2
        with torch.no_grad():
            left, right = judge.features(images)
        assert ((left - right).abs().max() < 0.02) == (layout == 1)  # padding is felt a little


@pytest.mark.parametrize("layout", [0, -1, 1.5])
def test_an_impossible_layout_raises(layout):
    with pytest.raises(ValueError, match="layout must be a positive integer"):
        ClassifierConfig(layout=layout)


def test_the_judge_of_digits_is_what_it_was():
    """Its config names no layout, and its features are those of a maximum over all places."""
    judge = Classifier.from_pretrained("digits-judge")
    assert judge.config == ClassifierConfig()
    images = torch.randn(4, 1, 28, 28)
    features = torch.nn.functional.silu(judge.project(judge.body(images).amax(dim=(2, 3))))
    assert torch.equal(judge.features(images), features)


@given(seed=st.integers(0, 2**31))
def test_a_warp_keeps_shape_and_range(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 2, 28, 28, generator=generator) * 2 - 1
    warped = random_warp(images, generator)
    assert warped.shape == images.shape
    assert warped.min() >= -1 - 1e-6 and warped.max() <= 1 + 1e-6


def test_a_warp_is_a_function_of_its_generator():
    images = torch.rand(3, 1, 28, 28)
    copy = images.clone()
    a, b, c = (random_warp(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(images, copy)
    assert not torch.equal(a[0] - images[0], a[1] - images[1])  # each image has its own


def test_a_warp_is_small():
    """The centre of a disc moves by at most 7 % of the width in each direction, and some by 4."""
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    disc = ((x - 13.5) ** 2 + (y - 13.5) ** 2 < 25).float().expand(200, 1, 28, 28)
    warped = random_warp(disc, torch.Generator().manual_seed(0))[:, 0]
    mass = warped.sum((1, 2))
    moved = torch.stack([(warped * x).sum((1, 2)), (warped * y).sum((1, 2))]) / mass - 13.5
    assert moved.abs().max() <= 0.07 * 28 * 1.1 + 0.2  # where it is also enlarged
    assert moved.abs().amax(1).min() > 0.04 * 28
    areas = mass / disc[0].sum()
    assert 0.75 < areas.min() < 0.9 and 1.1 < areas.max() < 1.3
