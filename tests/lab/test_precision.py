"""A way to train is chosen by a clock; here it is one that says what a test wants it to say."""

import copy
import warnings
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import RECIPES as TINY
from torch import nn
from torch.utils.data import TensorDataset

from minisd.files import read_json
from minisd.lab.precision import AUTO, Way, choose, ways, wished
from minisd.lab.recipes import Parts, run

CPU = torch.device("cpu")
WAYS = [Way(precision, last) for precision in ("no", "bf16") for last in (False, True)]
NAMES = ["float32", "float32, channels last", "bf16", "bf16, channels last"]
RECIPE = TINY["tiny-ddpm"].changed(steps=10)


def follow(folder, precision=AUTO, channels_last=False, resume=False, stop=None):
    for step in run(RECIPE, folder, None, None, resume, precision, channels_last):
        if step.step == stop:
            break
    return step


def never():
    raise AssertionError("nothing is timed here")


@pytest.fixture
def clock(monkeypatch):
    """Set the milliseconds of the three steps of every way in turn; a run of 10 is worth it."""
    monkeypatch.setattr("minisd.lab.precision.WORTH_IT", 10)
    monkeypatch.setattr("minisd.lab.precision.ways", lambda model, device: WAYS)

    def set_clock(*durations):
        ticks = iter([t / 1000 for each in durations for t in accumulate((0, *each))])
        monkeypatch.setattr("minisd.lab.precision.perf_counter", lambda: next(ticks))
        return ticks

    return set_clock


def fastest(clock, way):
    """Set a clock for which a step takes 3 ms in this way, and 5 in any other."""
    return clock(*((3,) * 3 if way == each else (5,) * 3 for each in WAYS))


def chosen(tmp_path, wish=None, recipe=RECIPE, **process):
    """Let `choose` choose; return its answer, and the model."""
    model, loss, _ = recipe.build(CPU)
    accelerator = SimpleNamespace(**{"device": CPU, "is_main_process": True, **process})
    path = tmp_path / "none.safetensors"
    answer = choose(wish, path, model, loss, recipe.dataset(), recipe.settings, accelerator)
    return answer, model


def test_the_fastest_way_is_taken_and_told(tmp_path, clock):
    """The median counts: the second way has the slowest step of all, the third the fastest."""
    ticks = clock((9, 5, 1), (4, 4, 100), (0.5, 6, 6), (7, 7, 7))
    told = "^float32, channels last: 4 ms a step; float32 5; bf16 6; bf16, channels last 7$"
    with pytest.warns(match=told):
        (way, times), _ = chosen(tmp_path)
    assert way == Way("no", True) and times == dict(zip(NAMES, (5, 4, 6, 7), strict=True))
    assert list(ticks) == []  # all of them were timed


def made_of(build, dataset=RECIPE.dataset):
    """What `choose` needs of a recipe."""
    return SimpleNamespace(build=build, dataset=dataset, settings=RECIPE.settings)


def test_a_step_is_timed_in_the_way_that_it_is_said_to_be(tmp_path, clock):
    seen = []

    class Seen(nn.Conv2d):
        def forward(self, x):
            y = super().forward(x)
            seen.append(Way(str(y.dtype), not self.weight.is_contiguous()))
            assert self.training and y.requires_grad
            return y

    def build(device):
        return Parts(Seen(3, 4, 3), lambda model, batch, generator: model(batch[0]).mean())

    clock(*[(3, 3, 3)] * 4)
    pictures = TensorDataset(torch.randn(16, 3, 8, 8))
    with pytest.warns(match="^float32: 3 ms"):  # of equals, the plainest
        chosen(tmp_path, None, made_of(build, lambda: pictures))
    types = {"no": "torch.float32", "bf16": "torch.bfloat16"}
    expected = [Way(types[way.precision], way.channels_last) for way in WAYS]
    assert seen == [way for way in expected for _ in range(4)]


def test_the_timing_leaves_no_trace(tmp_path, clock):
    fastest(clock, WAYS[3])
    before = []

    def build(device):
        parts = RECIPE.build(device)
        before.extend([copy.deepcopy(parts.model), torch.get_rng_state()])
        return parts

    with pytest.warns(match="^bf16, channels last: 3 ms"):
        _, model = chosen(tmp_path, None, made_of(build))
    fresh, state = before
    assert torch.equal(state, torch.get_rng_state())
    assert vars(model).keys() == vars(fresh).keys()  # accelerate leaves a mark on what it prepares
    for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.grad is None and ours.is_contiguous()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_run_is_the_same_whether_its_way_was_chosen_or_said(tmp_path, clock, way):
    fastest(clock, way)
    with pytest.warns(match=f"^{way}: 3 ms a step; "):
        follow(tmp_path / "chosen")
    clock()  # has nothing more to say
    follow(tmp_path / "said", way.precision, way.channels_last)
    folders = tmp_path / "chosen", tmp_path / "said"
    a, b = (folder / "model.safetensors" for folder in folders)
    assert a.read_bytes() == b.read_bytes()
    a, b = (load_file(folder / "checkpoint.safetensors") for folder in folders)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert all(t.is_contiguous() for t in a.values())


def test_the_card_says_what_was_chosen_and_why(tmp_path, clock):
    fastest(clock, WAYS[1])
    with pytest.warns(match="channels last"):
        follow(tmp_path / "chosen")
    follow(tmp_path / "said", "bf16")
    cost = read_json(tmp_path / "chosen" / "training.json")["cost"]
    assert cost["precision"] == "no" and cost["channels_last"] is True
    assert cost["milliseconds"] == dict(zip(NAMES, (5, 3, 5, 5), strict=True))
    card = (tmp_path / "chosen" / "card.md").read_text()
    assert "`minisd train tiny-ddpm --seed 0 --steps 10 --precision no --channels-last`\n" in card
    line = "float32, channels last: 3 ms a step; float32 5; bf16 5; bf16, channels last 5"
    assert f"- fastest here: {line}\n" in card
    cost = read_json(tmp_path / "said" / "training.json")["cost"]
    assert cost["channels_last"] is False and cost["milliseconds"] == {}
    card = (tmp_path / "said" / "card.md").read_text()
    assert "--steps 10 --precision bf16`\n" in card and "fastest" not in card


def test_a_resumed_run_goes_on_as_it_began(tmp_path, clock, monkeypatch):
    fastest(clock, WAYS[3])
    with pytest.warns(match="^bf16, channels last"):
        follow(tmp_path, stop=7)
    monkeypatch.setattr("minisd.lab.precision.perf_counter", never)
    for precision, last, message in (
        ("no", True, "precision is 'bf16' in the checkpoint, 'no' in this run"),
        ("bf16", False, "channels_last is True in the checkpoint, False in this run"),
    ):
        with pytest.raises(ValueError, match=f"belongs to another run: {message}. Resume with"):
            follow(tmp_path, precision, last, resume=True)
    follow(tmp_path, "bf16", True, resume=True, stop=6)  # the same, in so many words
    with warnings.catch_warnings(action="error"):
        follow(tmp_path, resume=True)
    assert "- fastest here: bf16, channels last: 3 ms" in (tmp_path / "card.md").read_text()
    follow(tmp_path / "whole", "bf16", True)
    whole, parts = tmp_path / "whole", tmp_path
    both = [(folder / "model.safetensors").read_bytes() for folder in (whole, parts)]
    assert both[0] == both[1]


def test_what_was_said_is_kept_when_auto_resumes(tmp_path, clock):
    clock()
    follow(tmp_path, "bf16", stop=7)
    follow(tmp_path, resume=True)
    assert read_json(tmp_path / "training.json")["cost"]["precision"] == "bf16"


@pytest.mark.parametrize("reason", ["short", "one way", "said"])
def test_where_there_is_nothing_to_choose_nothing_is_timed(tmp_path, clock, monkeypatch, reason):
    monkeypatch.setattr("minisd.lab.precision.perf_counter", never)
    if reason == "one way":
        monkeypatch.setattr("minisd.lab.precision.ways", lambda model, device: WAYS[:1])
    recipe = RECIPE.changed(steps=9) if reason == "short" else RECIPE
    wish = Way("bf16", True) if reason == "said" else None
    with warnings.catch_warnings(action="error"):
        answer, _ = chosen(tmp_path, wish, recipe)
    assert answer == (wish or Way("no", False), {})


def test_all_processes_take_what_the_first_chooses(tmp_path, clock, monkeypatch):
    """Here another is the fastest, and only the first says what it chose."""
    fastest(clock, WAYS[3])
    told, sent = dict(zip(NAMES, (4, 4, 2, 4), strict=True)), []

    def broadcast(objects):
        sent.extend(objects)
        return [told]

    monkeypatch.setattr("minisd.lab.precision.broadcast_object_list", broadcast)
    with warnings.catch_warnings(action="error"):
        answer, _ = chosen(tmp_path, is_main_process=False)
    assert answer == (WAYS[2], told)
    assert sent == [dict(zip(NAMES, (5, 5, 5, 3), strict=True))]


@pytest.mark.parametrize("supported", [True, False])
def test_only_what_the_device_has_is_tried(monkeypatch, supported):
    monkeypatch.setattr("minisd.lab.precision.has_bfloat16", lambda device: supported)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    network, flat = nn.Conv2d(1, 1, 3), nn.Linear(1, 1)
    for device in ("cuda", "cpu"):
        assert ways(network, torch.device(device)) == WAYS[: 4 if supported else 2]
        assert ways(flat, torch.device(device)) == WAYS[: 4 if supported else 2 : 2]
    assert ways(network, torch.device("mps")) == WAYS[:1]
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert ways(network, CPU) == WAYS[:2]


def test_auto_chooses_the_order_as_well(tmp_path):
    assert wished("bf16", True) == Way("bf16", True) and wished(AUTO, False) is None
    with pytest.raises(ValueError, match="auto chooses the order in memory as well"):
        follow(tmp_path / "new", AUTO, channels_last=True)
    assert not (tmp_path / "new").exists()
