import hashlib
import inspect
import itertools
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from minisd.classifier import Classifier, classify
from minisd.data.postcards import (
    ATTRIBUTES,
    CLASSES,
    JUDGED,
    LAYERS,
    SECOND,
    TWO,
    Postcards,
    Scene,
    Scenes,
    caption,
    combinations,
    draw,
    draw_scenes,
    is_held_out,
    is_held_out_pair,
    masks,
    pairs,
    render,
)
from minisd.data.postcards.canvas import Canvas
from minisd.data.postcards.captions import compose, prompts
from minisd.data.postcards.drawing import COLOURS, LIGHT
from minisd.data.postcards.scenes import mix
from minisd.metrics import mean_iou, overlaps, segment
from minisd.unet import UNet

SPLITS = ("train", "test", "held_out")
LABELS = {name: i for i, name in enumerate(LAYERS)}
LAND = ("grass", "sand", "snow")


@pytest.fixture(scope="module")
def world():
    """Two thousand scenes, their pictures and their maps."""
    scenes = draw_scenes("test", torch.arange(2000), seed=5)
    return scenes, *draw(scenes, 64)


# What a caption says, read by rules of its own

WORDS = {
    "subject": {
        "temple": "temple|shrine", "house": "house|cottage", "castle": "castle|fortress",
        "lighthouse": "lighthouse", "tent": "tent", "windmill": "windmill|mill",
        "rocket": "rocket|spaceship", "mushroom": "mushroom|toadstool", "boat": "boat",
        "balloon": "balloon", "pine tree": "pine", "palm tree": "palm",
    },
    "colour": {"blue": "blue(?! sky)"}
    | {c: c for c in ("red", "yellow", "green", "purple", "white")},
    "sky": {
        "day": "daylight|by day|blue sky|bright day", "sunset": "sunset|dusk",
        "night": "night|stars|starry", "storm": "storm|stormy",
    },
    "ground": {
        "grass": "grass|meadow", "sand": "sand|desert", "snow": "snow|snowy",
        "sea": "sea|water|island",
    },
    "place": {"left": "left", "middle": "middle|centre", "right": "right"},
    "scale": {"small": "small|little", "large": "large|big"},
    "companion": {
        "sun": "sun", "moon": "moon", "birds": "birds", "clouds": "clouds",
        "lightning": "lightning",
    },
    "trees": {1: "a tree", 2: "two trees", 3: "three trees"},
}  # fmt: skip


PATTERNS = {
    attribute: {value: re.compile(rf"\b({words})\b") for value, words in values.items()}
    for attribute, values in WORDS.items()
}


def named(text, attributes=tuple(WORDS)):
    """Return {attribute: {values that the text names}}."""
    return {
        attribute: {value for value, words in PATTERNS[attribute].items() if words.search(text)}
        for attribute in attributes
    }


def is_true(text, scene):
    return all(values <= {getattr(scene, attribute)} for attribute, values in named(text).items())


def test_captions_say_nothing_false():
    data = Postcards("train", 3000, seed=1, two=0.0)
    for scene, *texts in zip(
        data.scenes, data.captions, data.full_captions, data.canonical_captions, strict=True
    ):
        for text in texts:
            assert is_true(text, scene), (text, scene)
            assert re.fullmatch(r"[a-z-]+(,? [a-z-]+)*", text), text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        for text in texts[1:]:
            found = named(text)
            assert all(found[name] == {getattr(scene, name)} for name in JUDGED), text


def test_the_reader_of_captions_sees_what_is_false():
    scene = Scene("temple", "red", "sunset", "sea", "left")
    assert is_true("a red temple by the sea at sunset, on the left", scene)
    for lie in ("a blue temple", "a red house", "a temple at night", "a temple with birds",
                "a red temple in the snow", "a temple on the right", "a small temple",
                "a temple with two trees"):  # fmt: skip
        assert not is_true(lie, scene)


def test_captions_vary_and_leave_things_out():
    captions = Postcards("train", 2000, two=0.0).captions
    counts = Counter(sum(map(bool, list(named(text).values())[:5])) for text in captions)
    assert 0.4 < counts[5] / 2000 < 0.75 and set(counts) >= {1, 2, 3, 4, 5}
    assert any(not named(text)["subject"] for text in captions)
    scene = Scene("house", "red", "day", "grass", "left", "small", "sun", 2)
    numbers = torch.randint(2**62, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    texts = {compose(scene, number) for number in numbers}
    assert len(texts) > 250 and all(is_true(text, scene) for text in texts)


def test_the_canonical_caption_and_the_generator(generator):
    scene = Scene("temple", "red", "sunset", "sea", "left")
    assert caption(scene) == "a red temple by the sea at sunset, on the left"
    assert caption(replace(scene, subject="boat")).startswith("a red boat on the sea")
    assert caption(replace(scene, subject="balloon")).startswith("a red balloon above the sea")
    again = torch.Generator().manual_seed(0)
    texts = [caption(scene, generator, full=True) for _ in range(20)]
    assert texts == [caption(scene, again, full=True) for _ in range(20)] and len(set(texts)) > 10


# Two subjects: what is where, read from the words in between

NOUN = re.compile(
    rf"(?:\b({'|'.join(ATTRIBUTES['colour'])}) )?"
    rf"\b(sailing boat|hot-air balloon|{'|'.join(WORDS['subject'].values())})\b( tree)?"
)
KINDS = {word: kind for kind, words in WORDS["subject"].items() for word in words.split("|")}
KINDS |= {"sailing boat": "boat", "hot-air balloon": "balloon"}


def two_named(text):
    """Return [(subject, colour or None), ...], the left one first, and whether the text says so."""
    first, second = NOUN.finditer(text)
    found = [(KINDS[match[2]], match[1]) for match in (first, second)]
    between, after = text[first.end() : second.start()], text[second.end() :]
    to_left = re.match(r" (to the )?left of an? | on the left and an? ", between)
    to_right = re.match(r" (to the )?right of an? | on the right and an? ", between)
    if re.search(r"on the (left|right) and", between):
        assert after.startswith(" on the right" if to_left else " on the left"), text
    return found[::-1] if to_right else found, bool(to_left or to_right)


def test_captions_of_two_subjects_say_which_is_where():
    data = Postcards("train", 3000, seed=1, two=1.0)
    orders = Counter()
    for scene, some, full, plain in zip(
        data.scenes, data.captions, data.full_captions, data.canonical_captions, strict=True
    ):
        truth = [(scene.subject, scene.colour), (scene.second, scene.second_colour)]
        for text in (full, plain):
            assert two_named(text) == (truth, True), text
        for text in (some, full, plain):
            rest = named(text, ("sky", "ground", "companion"))
            assert all(values <= {getattr(scene, name)} for name, values in rest.items()), text
            assert re.fullmatch(r"[a-z-]+(,? [a-z-]+)*", text), text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
        if named(some)["subject"]:
            found, ordered = two_named(some)
            orders[ordered] += 1
            possible = (truth,) if ordered else (truth, truth[::-1])
            assert any(
                all(name == kind and hue in (None, colour) for (name, hue), (kind, colour) in both)
                for both in (list(zip(found, order, strict=True)) for order in possible)
            ), some
        assert named(full)["sky"] and named(full)["ground"]
    assert orders[False] > 300 and orders[True] > 1500


def test_the_same_words_in_another_order_are_another_picture():
    scene = Scene("house", "red", place="left", second="tent", second_colour="green", seed=3)
    swapped = replace(scene, subject="tent", colour="green", second="house", second_colour="red")
    assert caption(scene) == "a red house left of a green tent on the grass by day"
    assert sorted(caption(scene).split()) == sorted(caption(swapped).split())
    assert two_named(caption(scene))[0] == two_named(caption(swapped))[0][::-1]
    assert (render(scene) - render(swapped)).abs().mean() > 0.02


def letters(text):
    """Return the words of a text; "a" and "an" are one."""
    return re.sub(r"\ban\b", "a", text).replace(",", "").split()


def test_exchanging_colours_or_sides():
    data = Postcards("train", 200, two=1.0)
    for what in ("colours", "sides"):
        other = data.scenes.exchanged(what)
        assert torch.equal(other.exchanged(what).labels, data.scenes.labels)
        for scene, changed in zip(data.scenes, other, strict=True):
            one, two = (scene.subject, scene.colour), (scene.second, scene.second_colour)
            wanted = [two, one] if what == "sides" else [(one[0], two[1]), (two[0], one[1])]
            assert two_named(caption(changed)) == (wanted, True)
            assert sorted(caption(changed).split()) == sorted(caption(scene).split())
            assert changed.sky == scene.sky and changed.seed == scene.seed
        for text, scene in zip(data.exchanged_captions(what), other, strict=True):
            assert two_named(text) == (two_named(caption(scene))[0], True)
        full = zip(data.exchanged_captions(what), data.full_captions, strict=True)
        assert all(sorted(letters(a)) == sorted(letters(b)) for a, b in full)
    with pytest.raises(ValueError, match="nothing to exchange"):
        Postcards("train", 5, two=0.0).scenes.exchanged("sides")
    with pytest.raises(ValueError, match="got 'skies'"):
        data.scenes.exchanged("skies")


def test_negative_captions_are_false_and_nearly_the_same():
    data = Postcards("train", 600, seed=4, two=0.5)
    changes = Counter()
    for scene, true, false in zip(
        data.scenes, data.full_captions, data.negative_captions, strict=True
    ):
        a, b = sorted(letters(true)), sorted(letters(false))
        if scene.second == "none":
            assert sum((Counter(a) - Counter(b)).values()) == 1 and not is_true(false, scene)
            assert named(false)["colour"] != {scene.colour}
            continue
        assert a == b and two_named(false) != two_named(true)
        changes["sides" if two_named(false)[0] == two_named(true)[0][::-1] else "colours"] += 1
    assert min(changes.values()) > 80 and set(changes) == {"sides", "colours"}


@pytest.mark.parametrize("attribute", JUDGED)
def test_prompts_name_one_value_and_a_noun(attribute):
    values = prompts(attribute)
    assert len(values) == len(ATTRIBUTES[attribute])
    for value, texts in zip(ATTRIBUTES[attribute], values, strict=True):
        assert len(set(texts)) >= 3
        for text in texts:
            found = named(text, JUDGED)
            assert found.pop(attribute) == {value}, text
            subjects = found.pop("subject", {"the one asked for"})
            assert len(subjects) == 1 and not any(found.values()), text


def test_prompts_are_for_what_captions_name():
    with pytest.raises(ValueError, match="one of subject, colour, .* got 'trees'"):
        prompts("trees")


# Which scenes there are


def test_a_tenth_of_the_combinations_is_held_out():
    held_out, train = combinations("held_out"), combinations("train")
    assert len(held_out) + len(train) == 12 * 6 * 4
    assert 0.08 < len(held_out) / 288 < 0.12
    assert torch.equal(train, combinations("test"))
    assert len(combinations("all")) == 288 == len(combinations("all").unique(dim=0))
    assert is_held_out("rocket", "red", "night") and not is_held_out("temple", "red", "sunset")
    for pair in ([0, 1], [0, 2], [1, 2]):  # each pair of words is seen, though not each triple
        names = [("subject", "colour", "sky")[i] for i in pair]
        everything = len(ATTRIBUTES[names[0]]) * len(ATTRIBUTES[names[1]])
        assert len(train[:, pair].unique(dim=0)) == everything


def test_held_out_combinations_are_absent_from_200_000_training_scenes():
    held_out = {tuple(row) for row in combinations("held_out").tolist()}
    for split in SPLITS:
        labels = draw_scenes(split, torch.arange(200_000)).labels[:, :3]
        drawn = {tuple(row) for row in labels.unique(dim=0).tolist()}
        assert drawn == ({tuple(r) for r in combinations(split).tolist()})
        assert drawn == held_out if split == "held_out" else not drawn & held_out


def test_a_tenth_of_the_pairs_is_held_out_in_both_orders():
    kinds = itertools.combinations(ATTRIBUTES["subject"], 2)
    held_out = {frozenset(pair) for pair in kinds if is_held_out_pair(*pair)}
    assert 0.08 < len(held_out) / 66 < 0.16
    assert Counter(kind for pair in held_out for kind in pair).most_common(1)[0][1] <= 3
    assert torch.equal(pairs("train"), pairs("test"))
    assert len(pairs("all")) == len(pairs("all").unique(dim=0)) == 12 * 6 * 4 * 11 * 6
    seen = {tuple(row) for row in combinations("train").tolist()}
    for split in SPLITS:
        drawn = draw_scenes(split, torch.arange(100_000), two=1.0)
        rows = drawn.labels[:, [0, 1, 2, 8, 9]]
        assert {tuple(r) for r in rows.tolist()} <= {tuple(r) for r in pairs(split).tolist()}
        for subject, colour, sky, second, other in pairs(split).tolist():
            assert {(subject, colour, sky), (second - 1, other - 1, sky)} <= seen
            pair = {ATTRIBUTES["subject"][subject], ATTRIBUTES["second"][second]}
            assert (pair in held_out) == (split == "held_out")


def test_a_share_of_the_cards_holds_two_and_the_others_stay_the_same():
    one, some = (Postcards("train", 1000, seed=3, two=share) for share in (0.0, 0.4))
    double = some.scenes.second > 0
    assert 350 < double.sum() < 450 and not one.scenes.second.any()
    assert torch.equal(some.labels[~double], one.labels[~double])
    alone = (~double).nonzero().flatten()[:50]
    assert torch.equal(some.images(alone), one.images(alone))
    assert [some.captions[i] for i in alone] == [one.captions[i] for i in alone]


@pytest.mark.slow
def test_held_out_combinations_are_absent_from_200_000_training_captions():
    for text in set(Postcards("train", 200_000, two=0.0).captions):
        triples = itertools.product(*named(text, ("subject", "colour", "sky")).values())
        assert not any(is_held_out(*triple) for triple in triples), text


def test_all_values_and_pairs_are_reached_and_balanced():
    scenes = draw_scenes("train", torch.arange(40_000))
    for name in ("colour", "sky", "place", "scale"):
        shares = getattr(scenes, name).bincount(minlength=len(ATTRIBUTES[name])) / len(scenes)
        assert shares.min() > 0.8 * shares.mean(), name
    drawn = set(map(tuple, scenes.labels.tolist()))
    possible = set()
    for values in itertools.product(*(ATTRIBUTES[n] for n in ("subject", "sky", "ground"))):
        try:
            Scene(subject=values[0], sky=values[1], ground=values[2])
        except ValueError:
            continue
        possible.add(values)
    seen = {
        tuple(ATTRIBUTES[n][row[i]] for n, i in (("subject", 0), ("sky", 2), ("ground", 3)))
        for row in drawn
    }
    assert seen == possible and len(possible) == (11 * 4 + 1) * 4
    assert {(row[6], row[7]) for row in drawn} == set(itertools.product(range(6), range(4)))


@given(st.sampled_from(SPLITS), st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_drawn_scenes_are_real_scenes(split, seed, start):
    scenes = draw_scenes(split, torch.arange(start, start + 30), seed, two=0.5)
    for i, scene in enumerate(scenes):  # each passes the checks of Scene
        held_out = split == "held_out" and scene.second == "none"
        assert is_held_out(scene.subject, scene.colour, scene.sky) == held_out
        assert torch.equal(Scenes.of([scene]).labels, scenes[[i]].labels)
        assert torch.equal(Scenes.of([scene]).seed, scenes[[i]].seed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(subject="dragon"), "subject must be one of"),
        (dict(trees=4), "trees must be one of"),
        (dict(subject="boat", ground="grass"), "a boat is only ever on the sea"),
        (dict(sky="night", companion="sun"), "the night sky holds"),
        (dict(sky="day", companion="moon"), "the day sky holds"),
        (dict(ground="sea", trees=1), "no trees"),
        (dict(subject="pine tree", trees=1), "no trees"),
        (dict(place="left", second="boat", second_colour="red"), "a boat is only ever on the sea"),
        (dict(place="left", second="tent"), "a second subject has a colour"),
        (dict(second_colour="red"), "a second subject has a colour"),
        (dict(place="left", second="house", second_colour="blue"), "'house' twice"),
        (dict(second="tent", second_colour="blue"), "the first is on the left, got 'middle'"),
        (dict(place="left", second="tent", second_colour="red", trees=1), "no trees around two"),
        (dict(place="left", second="unicorn", second_colour="red"), "second must be one of"),
        (dict(seed=-1), "seed must be"),
        (dict(seed=2**32), "seed must be"),
    ],
)
def test_impossible_scenes_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        Scene(**changes)


def test_wrong_arguments_raise():
    with pytest.raises(ValueError, match="'valid'"):
        Postcards("valid")
    with pytest.raises(ValueError, match="n >= 1"):
        Postcards("train", 0)
    with pytest.raises(ValueError, match="seed"):
        Postcards("train", 5, seed=2**32)
    with pytest.raises(ValueError, match=r"share of cards .* got 1.5"):
        Postcards("train", 5, two=1.5)
    with pytest.raises(ValueError, match="at least 8"):
        render(Scene(), 7)


def test_the_hash_is_one_to_one_and_even():
    values = mix(7, torch.arange(100_000))
    assert values.min() >= 0 and values.max() < 2**32 and len(values.unique()) == 100_000
    bits = (values[:, None] >> torch.arange(32)) & 1
    assert (bits.float().mean(0) - 0.5).abs().max() < 0.01
    assert mix(0, 1, 2).item() != mix(0, 2, 1).item()
    u = draw_scenes("train", torch.arange(20_000)).uniform("x")
    assert u.min() >= 0 and u.max() < 1
    assert (u.sort().values - torch.arange(20_000) / 20_000).abs().max() < 0.015


# The same scene is the same picture


def test_an_item_is_the_same_whatever_is_drawn_with_it():
    few, many = Postcards("train", 40, seed=3), Postcards("train", 3000, seed=3)
    images = few.images()
    assert few.captions == many.captions[:40]
    assert torch.equal(images, many.images(slice(0, 40)))
    for i in (0, 17, 39, -1):
        image, labels = few[i]
        assert torch.equal(image, images[i]) and torch.equal(labels, few.labels[i])
        assert torch.equal(render(few.scenes[i]), images[i])
    order = torch.randperm(40)
    assert torch.equal(few.images(order), images[order])
    assert torch.equal(few.masks(order), few.masks()[order])


@pytest.mark.parametrize("size", [28, 37, 64])
def test_batches_do_not_matter_at_any_size(size):
    scenes = draw_scenes("train", torch.arange(30), two=0.5)
    image, label = draw(scenes, size)
    for i in range(30):
        one, where = draw(scenes[i], size)
        assert torch.equal(one, image[i]) and torch.equal(where, label[i])
    assert torch.equal(render(scenes, size), image) and torch.equal(masks(scenes, size), label)


def test_seed_split_and_index_make_a_difference():
    one = Postcards("train", 64)
    for other in (Postcards("train", 64, seed=1), Postcards("test", 64)):
        assert not (one.images() == other.images()).flatten(1).all(1).any()
    assert len(one.images().flatten(1).unique(dim=0)) == 64
    scene = Scene()
    assert not torch.equal(render(scene), render(replace(scene, seed=1)))


def digest():
    data = Postcards("train", 50, seed=9)
    content = data.images().numpy().tobytes() + "".join(data.captions).encode()
    return hashlib.sha256(content).hexdigest()


@pytest.mark.slow
def test_another_process_draws_the_same():
    code = "\n".join(
        ("import hashlib", "from minisd.data.postcards import Postcards", inspect.getsource(digest))
    )
    command = [sys.executable, "-c", f"{code}\nprint(digest())"]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert other == digest()


def test_painting_changes_nothing_it_is_given():
    scenes = draw_scenes("train", torch.arange(40), two=0.5)
    labels, seed, tables = scenes.labels.clone(), scenes.seed.clone(), COLOURS.clone()
    draw(scenes, 32)
    assert torch.equal(scenes.labels, labels) and torch.equal(scenes.seed, seed)
    assert torch.equal(COLOURS, tables)


# What the pictures show


def test_pictures_are_pictures(world):
    _, images, _ = world
    assert images.shape == (2000, 3, 64, 64) and images.dtype == torch.float32
    levels = (images + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-3
    assert levels.min() >= 0 and levels.max() <= 255.001


def test_masks_tile_the_picture(world):
    scenes, _, label = world
    assert label.shape == (2000, 64, 64) and label.dtype == torch.int64
    one_hot = F.one_hot(label, len(LAYERS))
    assert (one_hot.sum(-1) == 1).all()
    shares = one_hot.float().mean((1, 2))
    assert shares[:, LABELS["sky"]].min() > 0.2 and shares[:, LABELS["ground"]].min() > 0.1
    assert shares[:, LABELS["subject"]].min() > 0.02 and shares[:, LABELS["subject"]].max() < 0.4
    company = (scenes.companion > 0) | (scenes.trees > 0)
    assert (shares[~company, LABELS["companions"]] == 0).all()
    assert (shares[company, LABELS["companions"]] > 0).float().mean() > 0.99
    ground = one_hot[..., LABELS["ground"]].float().mean(2)  # by row, from the top
    assert ground[:, :20].max() == 0 and ground[:, -1].min() > 0.3


def test_twins_share_the_labels_and_nothing_else():
    data = Postcards("test", 40, seed=3)
    twins, again = data.twins(), data.twins([5, 2])
    assert torch.equal(again, twins[[5, 2]])
    differs = (twins - data.images()).abs().amax(dim=(1, 2, 3))
    assert (differs > 0.1).all()
    judged = classify(Classifier.from_pretrained("postcards-judge"), twins)
    assert (judged == data.labels).float().mean() > 0.99


def test_the_maps_of_twins_are_theirs():
    data = Postcards("test", 40, seed=3)
    found = segment(UNet.from_pretrained("postcards-segmenter"), data.twins())
    assert mean_iou(overlaps(found, data.twin_masks(), len(LAYERS))) > 0.9
    assert mean_iou(overlaps(found, data.masks(), len(LAYERS))) < 0.8
    assert torch.equal(data.twin_masks([5, 2]), data.twin_masks()[[5, 2]])


def test_the_subject_is_at_its_place_and_of_its_size(world):
    scenes, _, label = world
    subject = (label == LABELS["subject"]).float()
    x = (torch.arange(64) + 0.5) / 64
    centre = (subject.mean(1) * x).sum(1) / subject.mean(1).sum(1)
    for place, (low, high) in enumerate(((0.15, 0.36), (0.4, 0.6), (0.64, 0.85))):
        chosen = centre[scenes.place == place]
        assert low < chosen.min() and chosen.max() < high
    heights = subject.amax(2).sum(1)
    means = [heights[scenes.scale == scale].mean().item() for scale in range(3)]
    assert means[0] < 0.85 * means[1] and means[1] < 0.9 * means[2]


def test_the_subject_has_its_colour(world):
    """Most of its pixels are nearest to the colour it is named after, in the light of the sky."""
    scenes, images, label = world
    wrong = []
    for scene, image, where in zip(scenes, images, label, strict=True):
        pixels = (image[:, where == LABELS["subject"]].T + 1) / 2
        six = (COLOURS * LIGHT[ATTRIBUTES["sky"].index(scene.sky)]).flatten(1)
        nearest = torch.cdist(pixels, torch.cat([six, 0.76 * six])).argmin(1) % 6  # lit or shaded
        if ATTRIBUTES["colour"][nearest.mode().values] != scene.colour:
            wrong.append(scene)
    assert len(wrong) < 0.005 * len(scenes), wrong


def test_two_subjects_are_side_by_side_each_of_its_colour():
    """In each half of the card, most pixels of the subject have the colour asked for there."""
    data = Postcards("train", 400, seed=2, two=1.0)
    images, where = draw(data.scenes, 64)
    wrong = []
    for scene, image, label in zip(data.scenes, images, where, strict=True):
        for half, colour in ((slice(0, 32), scene.colour), (slice(32, 64), scene.second_colour)):
            subject = label[:, half] == LABELS["subject"]
            assert subject.sum() > 25
            pixels = (image[:, :, half][:, subject].T + 1) / 2
            six = (COLOURS * LIGHT[ATTRIBUTES["sky"].index(scene.sky)]).flatten(1)
            nearest = torch.cdist(pixels, torch.cat([six, 0.76 * six])).argmin(1) % 6
            if ATTRIBUTES["colour"][nearest.mode().values] != colour:
                wrong.append((scene, colour))
    assert len(wrong) < 0.01 * 800, wrong


def test_two_subjects_stand_on_one_ground_and_vary_each_for_itself():
    scenes = draw_scenes("train", torch.arange(500), two=1.0)
    first = Canvas(scenes, torch.zeros(500, 3, 8, 8), None)
    second = first.second()
    assert torch.equal(first.horizon, second.horizon)
    a, b = (canvas.vary("scale", 0, 1).flatten() for canvas in (first, second))
    assert torch.stack([a, b]).corrcoef()[0, 1].abs() < 0.15  # over three standard errors
    assert torch.equal(next(second.at(torch.arange(9))).vary("scale", 0, 1).flatten(), b[:9])


def test_boats_are_on_water_and_balloons_in_the_sky():
    for kind, touches in (("boat", True), ("balloon", False)):
        scenes = Scenes.of([Scene(kind, ground="sea", seed=i) for i in range(40)])
        label = masks(scenes, 64)
        for where in label:
            rows = (where == LABELS["subject"]).any(1).nonzero().flatten()
            below = where[rows[-1] + 1 :][:1]
            column = (where == LABELS["subject"])[rows[-1]]
            assert (below[0, column] == LABELS["ground" if touches else "sky"]).all()
    drawn = draw_scenes("train", torch.arange(20_000))
    boats = drawn.subject == ATTRIBUTES["subject"].index("boat")
    assert boats.any() and (drawn.ground[boats] == ATTRIBUTES["ground"].index("sea")).all()


def test_the_sky_decides_the_light(world):
    scenes, images, label = world
    sky, ground = (
        (images * (label == LABELS[name])[:, None]).sum((2, 3))
        / (label == LABELS[name]).sum((1, 2))[:, None]
        for name in ("sky", "ground")
    )
    day, sunset, night, storm = (sky[scenes.sky == k].mean(0) for k in range(4))
    assert day[2] > day[0] and sunset[0] > sunset[2] and night.mean() < -0.6
    assert (storm.max() - storm.min()) < 0.2 and night.mean() < storm.mean() < day.mean()
    for k in range(4):
        lit = [ground[(scenes.sky == s) & (scenes.ground == k)].mean() for s in range(4)]
        assert max(lit) == lit[0] and min(lit) == lit[2], ATTRIBUTES["ground"][k]


def test_what_the_words_add_is_seen():
    """Changing one attribute changes the picture, and only where it should."""
    base = Scene("house", "red", "day", "grass", "left", seed=4)
    before, where = draw(base, 64)
    for change in (dict(companion="sun"), dict(companion="birds"), dict(trees=2)):
        after, now = draw(replace(base, **change), 64)
        added = now == LABELS["companions"]
        assert added.sum() > 8 and (before != after).any(0)[added].float().mean() > 0.8
        assert torch.equal(where[~added], now[~added])
    after, now = draw(replace(base, colour="blue"), 64)
    changed = (before != after).any(0)
    assert torch.equal(where, now)
    assert (changed & (where != LABELS["subject"])).sum() < 0.2 * changed.sum()


@pytest.mark.parametrize("low", [28, 64])
def test_resolution_only_adds_detail(low):
    scenes = draw_scenes("test", torch.arange(60))
    small, where = draw(scenes, low)
    large, fine = draw(scenes, 4 * low)
    assert (F.avg_pool2d(large, 4) - small).abs().mean() < 0.03
    nearest = fine[:, 2::4, 2::4]
    assert (nearest == where).float().mean() > 0.97


# As a data set


def test_the_data_set_in_a_loader():
    data = Postcards("train", 20, size=28, two=0.5)
    asked = (*JUDGED, *SECOND) if TWO else JUDGED
    assert len(data) == 20 and CLASSES == tuple((n, len(ATTRIBUTES[n])) for n in asked)
    (images, labels), *_ = DataLoader(data, batch_size=8)
    assert images.shape == (8, 3, 28, 28) and labels.shape == (8, len(CLASSES))
    assert torch.equal(images, data.images(slice(0, 8)))
    for scene, row in zip(data.scenes, data.labels.tolist(), strict=True):
        assert [asdict(scene)[n] for n, _ in CLASSES] == [
            ATTRIBUTES[n][i] for (n, _), i in zip(CLASSES, row, strict=True)
        ]
    with pytest.raises(IndexError):
        data[20]
