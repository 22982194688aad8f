import errno
import json
import math
import os
import re
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

import minisd.checkpoints
import minisd.training
from minisd import UNet, UNetConfig
from minisd.losses import diffusion_loss
from minisd.schedulers import DDPMScheduler
from minisd.training import (
    EMA,
    SeededBatches,
    TrainingSettings,
    new_accelerator,
    seed_for,
    train,
)

CONFIG = UNetConfig(8, 1, 1, (8, 8), (False, True), num_heads=2, norm_num_groups=4)
SETTINGS = TrainingSettings(
    steps=12, batch_size=8, learning_rate=1e-3, warmup_steps=2, log_every=2, save_every=4
)
LOSS = diffusion_loss(DDPMScheduler(num_train_timesteps=50, beta_end=0.2))


@pytest.fixture(scope="module")
def toy():
    """40 pictures of a white square, each a little different."""
    images = torch.full((40, 1, 8, 8), -1.0)
    images[:, :, 2:6, 2:6] = 1.0
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images + 0.05 * noise)


def fresh():
    torch.manual_seed(1)
    return UNet(CONFIG)


def run(toy, settings=SETTINGS, checkpoint=None, stop=None, model=None, loss=LOSS, **others):
    model = model or fresh()
    for step in train(model, loss, toy, settings, checkpoint, **others):
        if step.step == stop:
            break
    return model, step


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def tensors_and_log(path):
    """A checkpoint but for the seconds, the one thing that no two runs share."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    log = [{**row, "seconds": None} for row in json.loads(metadata["log"])]
    return load_file(path), log, json.loads(metadata["run"])


# The loop


def test_the_loss_goes_down(toy):
    _, step = run(toy, replace(SETTINGS, steps=80, learning_rate=5e-3))
    losses = [row["loss"] for row in step.log]
    assert losses[0] > 0.6  # at the start nothing is known of noise of variance 1
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_each_step_is_yielded_with_what_it_did(toy):
    model = fresh()
    steps = list(train(model, LOSS, toy, SETTINGS))
    assert [s.step for s in steps] == list(range(1, 13))
    assert all(s.loss.ndim == 0 and not s.loss.requires_grad for s in steps)
    assert [s.learning_rate for s in steps] == [SETTINGS.learning_rate_at(i) for i in range(12)]
    log = steps[-1].log
    assert [row["step"] for row in log] == [2, 4, 6, 8, 10, 12]
    for row in log:
        two = [steps[row["step"] - 2].loss, steps[row["step"] - 1].loss]
        assert row["loss"] == pytest.approx(torch.stack(two).mean().item(), rel=1e-6)
    assert [row["seconds"] for row in log] == sorted(row["seconds"] for row in log)


def test_the_same_seed_gives_the_same_weights_whatever_else_is_random(toy):
    models = []
    for other in (5, 6):
        model = fresh()
        torch.manual_seed(other)  # the global generator has no say
        models.append(run(toy, model=model)[0])
    assert same(*models)
    assert not same(models[0], run(toy, replace(SETTINGS, seed=1))[0])


def test_the_learning_rate_rises_and_falls():
    settings = TrainingSettings(steps=100, learning_rate=2.0, warmup_steps=10)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2 * 0.5 * (1 + math.cos(math.pi * 9 / 100)))
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-2
    assert settings.learning_rate_at(50) == pytest.approx(1.0)


def test_gradients_are_clipped(toy):
    """A loss a million times larger moves the weights by no more."""

    def steep(model, batch, generator):
        return 1e6 * F.mse_loss(model(batch[0], 0), batch[0])

    norms = []

    class Spy(torch.optim.AdamW):
        def step(self, *arguments, **others):
            grads = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(torch.cat([g.flatten() for g in grads]).norm().item())
            return super().step(*arguments, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(minisd.training.OPTIMIZERS, "AdamW", Spy)
        run(toy, replace(SETTINGS, max_grad_norm=0.3), loss=steep)
    assert len(norms) == 12 and max(norms) <= 0.3 * (1 + 1e-4)


# Settings


@pytest.mark.parametrize(
    "change",
    [
        dict(steps=0),
        dict(steps=-200),
        dict(batch_size=0),
        dict(log_every=0),
        dict(save_every=0),
        dict(save_every=-4),
        dict(log_every=3),  # save_every is 4: a checkpoint would cut a mean in two
        dict(seed=-1),
        dict(optimizer="SGD"),
    ],
    ids=str,
)
def test_settings_out_of_range_raise(change):
    (name,) = change
    with pytest.raises(ValueError, match=name):
        replace(SETTINGS, **change)


def test_too_little_data_raises(toy):
    with pytest.raises(ValueError, match="batch of 41 needs more than 40"):
        run(toy, replace(SETTINGS, batch_size=41))


def test_a_loss_that_is_not_finite_raises_and_is_never_saved(toy, tmp_path):
    calls = []

    def loss(model, batch, generator):
        calls.append(1)
        return LOSS(model, batch, generator) * (float("nan") if len(calls) > 5 else 1)

    path = tmp_path / "c.safetensors"
    with pytest.raises(FloatingPointError, match="nan at step 6"):
        run(toy, checkpoint=path, loss=loss)
    tensors, log, _ = tensors_and_log(path)
    assert log[-1]["step"] == 4
    assert all(t.isfinite().all() for t in tensors.values())


# The precision


class Seen(nn.Module):
    """A layer that notes the type in which it computes."""

    def __init__(self):
        super().__init__()
        self.layer, self.types = nn.Linear(3, 1), []

    def forward(self, x):
        y = self.layer(x)
        self.types.append(y.dtype)
        return y


def types_seen(model, accelerator=None):
    """Train for a few steps; return the types in which the model computed."""
    settings = replace(SETTINGS, steps=4)
    data = TensorDataset(torch.randn(16, 3))
    model.types.clear()
    for _ in train(
        model, lambda m, b, g: m(b[0]).square().mean(), data, settings, None, accelerator
    ):
        pass
    return set(model.types)


def test_each_run_has_the_precision_that_it_asks_for():
    """accelerate alone refuses a second precision, or keeps the first without a word."""
    model, ours, half = Seen(), new_accelerator("bf16"), half_precision()
    assert types_seen(model) == {torch.float32}
    assert types_seen(model, new_accelerator("bf16")) == {torch.bfloat16}
    assert types_seen(model, new_accelerator("no")) == {torch.float32}
    assert types_seen(model, ours) == {torch.bfloat16} and ours.mixed_precision == "bf16"
    assert types_seen(model, half) == {torch.float16}
    assert types_seen(model) == {torch.float32}


def test_runs_of_two_precisions_take_turns(toy):
    loops = {
        precision: train(fresh(), LOSS, toy, SETTINGS, None, new_accelerator(precision))
        for precision in ("no", "bf16")
    }
    *_, last = zip(*loops.values(), strict=True)
    for precision, step in zip(loops, last, strict=True):
        _, alone = run(toy, accelerator=new_accelerator(precision))
        assert same(alone.ema, step.ema)


def test_the_precision_of_the_launcher_counts(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert types_seen(Seen()) == {torch.bfloat16}


def test_fp16_on_a_cpu_is_refused(toy):
    """accelerate alone trains in float32 and says fp16."""
    AcceleratorState._shared_state = {}
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        run(toy, accelerator=Accelerator(mixed_precision="fp16"))
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        new_accelerator("fp16")


def test_accumulated_gradients_are_refused(toy, monkeypatch):
    with pytest.raises(ValueError, match="gradient_accumulation_steps is 4"):
        run(toy, accelerator=Accelerator(gradient_accumulation_steps=4))
    run(toy)  # what another Accelerator accumulated is no matter
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    with pytest.raises(ValueError, match="gradient_accumulation_steps is 2"):
        run(toy)


# The moving average


def test_the_average_follows_its_formula():
    model = nn.Linear(2, 1)
    ema = EMA(model, decay=0.6)
    expected = model.weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(1, 2))
        ema.update(model, step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        assert torch.allclose(ema.model.weight, expected, atol=1e-6)
    assert decay == 0.6 and not ema.model.weight.requires_grad


def test_the_average_is_a_copy():
    model = nn.Linear(2, 1)
    ema = EMA(model, 0.9)
    before = ema.model.weight.clone()
    with torch.no_grad():
        model.weight.add_(1)
    assert torch.equal(ema.model.weight, before) and not ema.model.training


def test_the_average_has_the_buffers_of_the_model():
    """Running mean, running variance, and the count, which is an integer."""
    x = 5 * torch.randn(64, 3) + 20
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    settings = replace(SETTINGS, ema_decay=0.5)
    *_, step = train(model, lambda m, b, g: m(b[0]).square().mean(), TensorDataset(x), settings)
    buffers = dict(step.ema.named_buffers())
    assert buffers["0.num_batches_tracked"] == 12 and buffers["0.running_mean"].min() > 10
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


# The order of the data


def batches_of(length, settings, first_step=0, rank=0, world=1):
    return list(SeededBatches(length, settings, first_step, rank, world))


@given(
    batch_size=st.integers(1, 10),
    per_epoch=st.integers(1, 6),
    rest=st.integers(0, 9),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_each_epoch_shows_every_image_once(batch_size, per_epoch, rest, epochs, seed):
    length = batch_size * per_epoch + rest % batch_size
    settings = TrainingSettings(steps=per_epoch * epochs, batch_size=batch_size, seed=seed)
    batches = batches_of(length, settings)
    assert len(batches) == settings.steps and {len(b) for b in batches} == {batch_size}
    for epoch in range(epochs):
        seen = sum(batches[epoch * per_epoch : (epoch + 1) * per_epoch], [])
        assert len(set(seen)) == len(seen) == length - rest % batch_size
        assert set(seen) <= set(range(length))


@given(first_step=st.integers(0, 30), seed=st.integers(0, 2**31))
def test_the_batches_are_a_function_of_the_step(first_step, seed):
    settings = TrainingSettings(steps=30, batch_size=6, seed=seed)
    assert batches_of(20, settings, first_step) == batches_of(20, settings)[first_step:]


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_each_batch(world):
    settings = TrainingSettings(steps=12, batch_size=6)
    whole = batches_of(20, settings)
    shares = [batches_of(20, settings, 0, rank, world) for rank in range(world)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert {len(part) for part in parts} == {6 // world}
        assert sorted(sum(parts, [])) == sorted(batch)


def test_a_batch_that_cannot_be_shared_raises():
    with pytest.raises(ValueError, match="4 processes.*batch of 6"):
        batches_of(20, TrainingSettings(steps=1, batch_size=6), 0, 0, 4)


def test_epochs_and_seeds_differ_in_order():
    batches = batches_of(20, TrainingSettings(steps=3, batch_size=20))
    assert len({tuple(b) for b in batches}) == 3
    assert batches_of(20, TrainingSettings(steps=1, batch_size=20, seed=1)) != batches[:1]


def test_no_two_draws_share_a_seed():
    seeds = {
        seed_for(seed, step, rank) for seed in range(5) for step in range(500) for rank in range(4)
    }
    assert len(seeds) == len({seed % 2**32 for seed in seeds}) == 5 * 500 * 4  # on a CPU, 32 bits
    assert all(0 <= seed < 2**63 for seed in seeds)


# Checkpoints


def channels_last():
    return fresh().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def straight(toy, tmp_path_factory):
    """Runs without a break, one for each optimiser: (checkpoint, model, last step)."""
    runs = {}
    for optimizer in ("AdamW", "Muon"):
        path = tmp_path_factory.mktemp("straight") / "a.safetensors"
        runs[optimizer] = (path, *run(toy, replace(SETTINGS, optimizer=optimizer), path))
    return runs


@pytest.mark.parametrize(
    ("stop", "optimizer"), [(4, "AdamW"), (4, "Muon"), (6, "AdamW"), (7, "AdamW"), (11, "Muon")]
)
def test_a_resumed_run_ends_bit_for_bit_the_same(toy, tmp_path, straight, stop, optimizer):
    broken = tmp_path / "b.safetensors"
    settings = replace(SETTINGS, optimizer=optimizer)
    path, model, step = straight[optimizer]
    run(toy, settings, broken, stop)
    torch.manual_seed(77)
    resumed, last = run(toy, settings, broken, model=UNet(CONFIG))  # other initial weights
    assert same(model, resumed) and same(step.ema, last.ema)
    (a, log_a, run_a), (b, log_b, run_b) = map(tensors_and_log, (path, broken))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert log_a == log_b and run_a == run_b and run_a["settings"] == asdict(settings)


@pytest.mark.parametrize("optimizer", ["AdamW", "Muon"])
def test_a_resumed_run_with_channels_last_ends_bit_for_bit_the_same(toy, tmp_path, optimizer):
    settings = replace(SETTINGS, optimizer=optimizer)
    straight, broken = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    model, step = run(toy, settings, straight, model=channels_last())
    run(toy, settings, broken, 7, model=channels_last())
    resumed, last = run(toy, settings, broken, model=channels_last())
    assert same(model, resumed) and same(step.ema, last.ema)
    (a, log_a, run_a), (b, log_b, run_b) = map(tensors_and_log, (straight, broken))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert log_a == log_b and run_a == run_b and run_a["channels_last"]


@pytest.mark.parametrize("optimizer", ["AdamW", "Muon"])
def test_the_order_in_memory_changes_nothing_in_the_file(toy, tmp_path, straight, optimizer):
    path, settings = tmp_path / "c.safetensors", replace(SETTINGS, optimizer=optimizer)
    model, step = run(toy, settings, path, model=channels_last())
    (a, _, run_a), (b, _, run_b) = map(tensors_and_log, (straight[optimizer][0], path))
    assert {key: t.shape for key, t in a.items()} == {key: t.shape for key, t in b.items()}
    assert run_a == run_b | {"channels_last": False} != run_b
    for name, net in (("model", model), ("ema", step.ema)):
        assert minisd.checkpoints.channels_last(net)
        assert all(torch.equal(t, b[f"{name}.{key}"]) for key, t in net.state_dict().items())


@pytest.mark.parametrize("optimizer", ["AdamW", "Muon"])
def test_what_the_optimizer_remembers_lies_as_the_weights_do(toy, tmp_path, optimizer):
    path, model = tmp_path / "c.safetensors", channels_last()
    run(toy, replace(SETTINGS, optimizer=optimizer), path, 4, model=model)
    new = minisd.training.OPTIMIZERS[optimizer](model.parameters(), 1e-3)
    _, facts = minisd.checkpoints.read_checkpoint(path)
    minisd.checkpoints.load_checkpoint(path, facts["run"], model, fresh(), new)
    strides = [
        (t.stride(), p.stride())
        for p, state in new.state.items()
        for t in state.values()
        if t.shape == p.shape
    ]
    assert len(strides) > 20 and all(ours == theirs for ours, theirs in strides)
    assert not all(t.is_contiguous() for state in new.state.values() for t in state.values()), (
        "nothing is compared"
    )


def test_a_complete_run_yields_its_end_when_it_is_resumed(toy, tmp_path):
    path = tmp_path / "c.safetensors"
    model, step = run(toy, checkpoint=path)
    before = path.read_bytes()
    again = fresh()
    (only,) = train(again, LOSS, toy, SETTINGS, path)
    assert only.step == 12 and only.log == step.log
    assert same(again, model) and same(only.ema, step.ema)
    assert path.read_bytes() == before


def test_checkpoints_are_written_on_time(toy, tmp_path):
    path = tmp_path / "c.safetensors"
    settings, written = replace(SETTINGS, steps=10), []
    for step in train(fresh(), LOSS, toy, settings, path):
        if path.exists():
            written.append((step.step, tensors_and_log(path)[1][-1]["step"]))
    expected = {4: 4, 5: 4, 6: 4, 7: 4, 8: 8, 9: 8, 10: 10}
    assert dict(written) == expected


@pytest.fixture(scope="module")
def checkpoint(toy, tmp_path_factory):
    """The bytes of a checkpoint at step 4."""
    path = tmp_path_factory.mktemp("checkpoint") / "c.safetensors"
    run(toy, checkpoint=path, stop=4)
    return path.read_bytes()


@pytest.fixture
def path(checkpoint, tmp_path):
    """A copy of that checkpoint."""
    path = tmp_path / "c.safetensors"
    path.write_bytes(checkpoint)
    return path


@pytest.mark.parametrize("change", [dict(steps=20), dict(seed=3), dict(learning_rate=1e-4)])
def test_a_checkpoint_of_other_settings_is_refused(toy, path, change):
    before = path.read_bytes()
    ((name, value),) = change.items()
    was = getattr(SETTINGS, name)
    with pytest.raises(
        ValueError, match=f"settings.{name} is {was} in the checkpoint, {value} in this run"
    ):
        run(toy, replace(SETTINGS, **change), path)
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(toy, path):
    other = UNet(replace(CONFIG, channels=(8, 16)))
    message = r"model.channels is \[8, 8\] in the checkpoint, \[8, 16\] in this run"
    with pytest.raises(ValueError, match=message):
        run(toy, checkpoint=path, model=other)


def test_a_checkpoint_in_another_order_is_refused(toy, path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="channels_last is False in the checkpoint, True in this"):
        run(toy, checkpoint=path, model=channels_last())
    assert path.read_bytes() == before


def test_a_checkpoint_that_names_no_order_has_the_channels_first(toy, path, straight):
    tensors, log, described = tensors_and_log(path)
    del described["channels_last"]
    log = [{**row, "seconds": 1.0} for row in log]
    save_file(tensors, path, {"run": json.dumps(described), "log": json.dumps(log)})
    resumed, _ = run(toy, checkpoint=path)
    assert same(resumed, straight["AdamW"][1])


def other_run(toy, **change):
    """Arguments of `run` that differ in one thing from the default."""
    length, source = change.pop("examples", 40), change.pop("source", "white squares")
    data = TensorDataset(toy.tensors[0][:length])
    data.source = source
    accelerator = new_accelerator(change.pop("precision", "no"))
    return dict(toy=data, accelerator=accelerator, recipe=change.pop("recipe", "squares"))


@pytest.fixture(scope="module")
def squares(toy, tmp_path_factory):
    """The checkpoint of a run that says what it is, at step 4."""
    path = tmp_path_factory.mktemp("squares") / "squares.safetensors"
    run(**other_run(toy), checkpoint=path, stop=4)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(precision="bf16"), "precision is 'no' in the checkpoint, 'bf16' in this run"),
        (dict(source="UCI"), "data is 'white squares' in the checkpoint, 'UCI' in this run"),
        (dict(examples=32), "examples is 40 in the checkpoint, 32 in this run"),
        (dict(recipe="circles"), "recipe is 'squares' in the checkpoint, 'circles' in this run"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_run_is_refused(toy, squares, change, message):
    before = squares.read_bytes()
    with pytest.raises(
        ValueError, match=f"squares.safetensors belongs to another run: {message}. Resume"
    ):
        run(**other_run(toy, **change), checkpoint=squares)
    assert squares.read_bytes() == before


def test_a_checkpoint_of_the_same_run_is_not_refused(toy, squares):
    _, step = run(**other_run(toy), checkpoint=squares)
    assert step.step == SETTINGS.steps


@pytest.mark.parametrize(
    ("field", "value"), [("processes", 2), ("device", "cuda"), ("format", 1), ("format", 3)]
)
def test_a_checkpoint_of_another_machine_or_version_is_refused(toy, path, field, value):
    tensors, log, described = tensors_and_log(path)
    metadata = {"run": json.dumps(described | {field: value}), "log": json.dumps(log)}
    save_file(tensors, path, metadata)
    message = f"{field} is {value!r} in the checkpoint, {described[field]!r} in this run"
    with pytest.raises(ValueError, match=message):
        run(toy, checkpoint=path)


def test_all_differences_are_named_and_only_they(toy, path):
    with pytest.raises(ValueError) as error:
        run(toy, replace(SETTINGS, seed=3, optimizer="Muon"), path, model=nn.Conv2d(1, 1, 1))
    found = re.findall(r"([\w.]+) is \S.*? in the checkpoint", str(error.value))
    assert {"settings.seed", "settings.optimizer", "model.class", "model.channels"} <= set(found)
    assert not {"precision", "settings.steps", "data"} & set(found)


def test_a_checkpoint_of_the_first_format_is_refused(toy, path):
    """It holds settings and log alone."""
    tensors, log, described = tensors_and_log(path)
    metadata = {"settings": json.dumps(described["settings"]), "log": json.dumps(log)}
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="is a checkpoint of an older version.*another folder"):
        run(toy, checkpoint=path)


def half_precision():
    """An accelerator that computes in fp16 on a CPU, with a scale that changes all the time."""
    AcceleratorState._shared_state = {}
    accelerator = Accelerator(mixed_precision="fp16")
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17, growth_interval=2)
    return accelerator


@pytest.mark.parametrize(
    ("stop", "optimizer"),
    [
        pytest.param(4, "AdamW", marks=pytest.mark.slow),
        (7, "Muon"),
        pytest.param(11, "Muon", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_in_fp16_ends_bit_for_bit_the_same(toy, tmp_path, stop, optimizer):
    """The scale of the gradients decides which steps are skipped: it is in the checkpoint."""
    straight, broken = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    settings = replace(SETTINGS, optimizer=optimizer)
    accelerator = half_precision()
    model, step = run(toy, settings, straight, accelerator=accelerator)
    assert 1 < accelerator.scaler.get_scale() != 2.0**17
    run(toy, settings, broken, stop, accelerator=half_precision())
    resumed = half_precision()
    again, last = run(toy, settings, broken, model=UNet(CONFIG), accelerator=resumed)
    assert same(model, again) and same(step.ema, last.ema)
    assert resumed.scaler.state_dict() == accelerator.scaler.state_dict()
    (a, log_a, _), (b, log_b, _) = map(tensors_and_log, (straight, broken))
    assert log_a == log_b and a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


class Tied(nn.Module):
    """Two layers with one weight, a buffer that is a part of it, and one that never changes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("first_row", self.a.weight.detach()[0])
        self.register_buffer("empty", torch.zeros(0))

    def forward(self, x):
        return self.b(self.a(x))


def test_shared_weights_are_saved_and_resumed(tmp_path):
    path, data = tmp_path / "c.safetensors", TensorDataset(torch.randn(16, 3))

    def loss(model, batch, generator):
        return (model(batch[0]) - 1).square().mean()

    torch.manual_seed(1)
    straight, _ = run(data, model=Tied(), loss=loss)
    torch.manual_seed(1)
    run(data, model=Tied(), loss=loss, checkpoint=path, stop=7)
    resumed, step = run(data, model=Tied(), loss=loss, checkpoint=path)
    assert same(straight, resumed)
    assert resumed.a.weight is resumed.b.weight and step.ema.a.weight is step.ema.b.weight


def test_shared_weights_with_channels_last_are_saved(tmp_path):
    path, layer = tmp_path / "c.safetensors", nn.Conv2d(3, 3, 3)
    model = nn.Sequential(layer, layer).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters())
    minisd.checkpoints.save_checkpoint(path, {}, [], model, model, optimizer)
    saved = load_file(path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(saved[f"model.{key}"], tensor)
        assert torch.equal(saved[f"ema.{key}"], tensor)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused(toy, path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        run(toy, checkpoint=path)


def test_a_foreign_safetensors_file_is_no_checkpoint(toy, tmp_path):
    path = tmp_path / "c.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="c.safetensors is no checkpoint"):
        run(toy, checkpoint=path)


def test_a_full_disk_leaves_the_old_checkpoint_whole(toy, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    real = minisd.checkpoints.save_file

    def full_disk(tensors, file, metadata):
        if json.loads(metadata["log"])[-1]["step"] > 4:
            with open(file, "wb") as half:
                half.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, file, metadata)

    monkeypatch.setattr(minisd.checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(toy, checkpoint=path)
    assert os.listdir(tmp_path) == ["c.safetensors"]
    assert tensors_and_log(path)[1][-1]["step"] == 4

    monkeypatch.undo()
    resumed, _ = run(toy, checkpoint=path)
    assert same(resumed, run(toy)[0])


def test_no_checkpoint_is_written_unless_asked(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(toy)
    assert os.listdir(tmp_path) == []
