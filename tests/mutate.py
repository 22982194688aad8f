"""Do the tests notice a wrong line? Break one after the other, and run the tests that should fail.

    python tests/mutate.py            every entry, about half an hour
    python tests/mutate.py cosine     the entries whose lines or tests contain this word

Each line is broken in a copy of the package, never in the package itself. An entry names no module:
its line is looked for in all that is taught, and must stand there exactly once, so that it may move
from module to module. The exit status is 1 if a wrong line survives, 2 if nothing can be concluded.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
UNTAUGHT = {
    "exercises",
    "lab",
    "book",
}  # where a line of the book may stand once more, or none does
TIMEOUT = 300  # seconds for the tests of one entry; what never ends has been noticed


class Mutant(NamedTuple):
    """A right line, a wrong one, and the test files that must tell them apart."""

    right: str
    wrong: str
    tests: tuple[str, ...]


class Refused(ValueError):
    """An entry that does not fit the package."""


SCHEDULES = ("test_schedules.py",)
SCHEDULERS = ("test_schedulers.py", "parity/test_scheduler_parity.py")
LAYERS = ("test_layers.py",)
UNET = ("test_unet.py", "parity/test_unet_parity.py")
VAE = ("test_vae.py", "parity/test_vae_parity.py")
CLIP = ("test_clip.py", "parity/test_clip_parity.py")
TOKENIZER = ("test_tokenizer.py", "parity/test_tokenizer_parity.py")
TRAINING = ("test_training.py", "test_losses.py")
OPTIM = ("test_optim.py",)
LOSSES = ("test_losses.py",)
PIPELINE = ("test_pipeline.py",)
GUIDING = ("test_pipeline.py", "test_conditioning.py", "test_maps.py")
EDITING = ("test_editing.py",)
METRICS = ("test_metrics.py",)
QUALITY = ("test_quality.py",)
FILES = ("test_files.py",)
PRETRAINED = ("test_pretrained.py",)
WEIGHTS = ("test_weights.py", "test_full_size.py")
SYSTEM = ("test_stable_diffusion.py", "parity/test_pipeline_parity.py")

MUTANTS = [
    # schedules
    Mutant(
        "return alpha_bar.sqrt() * x_start + (1 - alpha_bar).sqrt() * noise",
        "return alpha_bar.sqrt() * x_start + (1 - alpha_bar) * noise",
        SCHEDULES,
    ),
    Mutant(
        "torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2",
        "torch.cos(u * math.pi / 2) ** 2",
        SCHEDULES,
    ),
    Mutant(
        "torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2",
        "torch.linspace(beta_start, beta_end, num_train_timesteps)",
        SCHEDULES,
    ),
    Mutant(
        "((root - last) * first / (first - last)) ** 2",
        "((root - last) / (first - last)) ** 2",
        (*SCHEDULES, *SCHEDULERS),
    ),
    Mutant(
        "return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * x_start",
        "return alpha_bar.sqrt() * noise + (1 - alpha_bar).sqrt() * x_start",
        SCHEDULES,
    ),
    Mutant(
        "return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * prediction",
        "return alpha_bar.sqrt() * x_t + (1 - alpha_bar).sqrt() * prediction",
        SCHEDULES,
    ),
    Mutant(
        "return alpha_bar.sqrt() * prediction + (1 - alpha_bar).sqrt() * x_t",
        "return alpha_bar.sqrt() * prediction - (1 - alpha_bar).sqrt() * x_t",
        SCHEDULES,
    ),
    Mutant("return alpha_bar / (1 - alpha_bar)", "return alpha_bar / (2 - alpha_bar)", SCHEDULES),
    # schedulers
    Mutant(
        "(1 - alpha_bar_prev - std**2)",
        "(1 - alpha_bar_prev)",
        SCHEDULERS,
    ),
    Mutant(
        "variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta  #",
        "variance = (1 - alpha_bar_prev) * beta  #",
        SCHEDULERS,
    ),
    Mutant(
        "+ alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar) * x",
        "+ alpha * (1 - alpha_bar_prev) / (1 - alpha_bar) * x",
        SCHEDULERS,
    ),
    Mutant("x + (sigma_next - sigma) * slope", "x - (sigma_next - sigma) * slope", SCHEDULERS),
    Mutant("sigma_down = sigma_next**2 / sigma", "sigma_down = sigma_next / sigma", SCHEDULERS),
    Mutant("mean = (self.slope + slope) / 2", "mean = slope", SCHEDULERS),
    Mutant("correction = -phi_1 / 2 * h * slope", "correction = phi_1 / 2 * h * slope", SCHEDULERS),
    Mutant("phi_3 = phi_2 / h - 1 / 2", "phi_3 = phi_2 / h", SCHEDULERS),
    Mutant(
        "return (start + ramp * (end - start)) ** rho",
        "return sigma_max + ramp * (sigma_min - sigma_max)",
        SCHEDULERS,
    ),
    Mutant(
        "np.interp(np.log(sigmas), np.log(self.train_sigmas), steps)",
        "np.interp(sigmas, self.train_sigmas, steps)",
        SCHEDULERS,
    ),
    Mutant("timesteps = timesteps.round() - 1", "timesteps = timesteps.round()", SCHEDULERS),
    Mutant("timesteps = timesteps + self.steps_offset", "pass", SCHEDULERS),
    Mutant(
        "x_start.clamp(-self.clip_sample_range, self.clip_sample_range)",
        "x_start.clamp(-1, 1)",
        SCHEDULERS,
    ),
    Mutant(
        "(1 - alpha_bar_prev).sqrt() * eps_pred",
        "(1 - alpha_bar).sqrt() * eps_pred",
        SCHEDULERS,
    ),
    # layers
    Mutant("torch.exp(exponents / half)", "torch.exp(exponents / (half - 1))", LAYERS),
    Mutant(
        "torch.cat([angles.cos(), angles.sin()], dim=-1)",
        "torch.cat([angles.sin(), angles.cos()], dim=-1)",
        LAYERS,
    ),
    Mutant("return self.shortcut(x) + h", "return self.shortcut(x) - h", (*LAYERS, *UNET)),
    Mutant("return value * F.gelu(gate)", "return gate * F.gelu(value)", (*LAYERS, *UNET)),
    Mutant("is_causal=self.causal", "is_causal=False", (*LAYERS, *CLIP)),
    Mutant(
        "x = x + self.cross_attention(self.norm_2(x), context)",
        "x = self.cross_attention(self.norm_2(x), context)",
        (*LAYERS, *UNET),
    ),
    Mutant(
        "self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)",
        "self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-5)",
        (*LAYERS, *UNET),
    ),
    Mutant(
        'F.interpolate(x, scale_factor=2.0, mode="nearest")',
        'F.interpolate(x, scale_factor=2.0, mode="bilinear")',
        (*LAYERS, *UNET),
    ),
    # unet
    Mutant(
        "x = block(torch.cat([x, skips.pop()], dim=1), emb, context)",
        "x = block(torch.cat([x, skips.pop() * 0], dim=1), emb, context)",
        UNET,
    ),
    Mutant("return t.expand(x.shape[0])", "return (0 * t).expand(x.shape[0])", UNET),
    Mutant(
        "nn.GroupNorm(config.norm_num_groups, width, eps=1e-5)",
        "nn.GroupNorm(config.norm_num_groups, width, eps=1e-6)",
        UNET,
    ),
    # vae
    Mutant("NORM_EPS = 1e-6", "NORM_EPS = 1e-5", VAE),
    Mutant("nn.ZeroPad2d((0, 1, 0, 1))", "nn.ZeroPad2d((1, 0, 1, 0))", VAE),
    Mutant("(0.5 * self.logvar).exp() * noise", "self.logvar.exp() * noise", VAE),
    Mutant(
        "terms = self.mean.square() + self.logvar.exp() - 1 - self.logvar",
        "terms = self.mean.square() + self.logvar.exp() - 1",
        VAE,
    ),
    Mutant("return self.config.scaling_factor * z", "return z / self.config.scaling_factor", VAE),
    Mutant(
        "(means.var(correction=0) + variances.mean()).rsqrt()",
        "means.var(correction=0).rsqrt()",
        VAE,
    ),
    # clip
    Mutant("x * torch.sigmoid(1.702 * x)", "x * torch.sigmoid(x)", CLIP),
    Mutant(
        "first = is_end.int().argmax(dim=1)",
        "first = torch.full((len(ids),), ids.shape[1] - 1)",
        CLIP,
    ),
    Mutant("self.logit_scale.clamp(max=math.log(100)).exp()", "self.logit_scale.exp()", CLIP),
    Mutant("F.cross_entropy(true.T, pairs)", "F.cross_entropy(true, pairs)", LOSSES),
    Mutant(
        "EncoderBlock(config.dim, config.num_heads, True)",
        "EncoderBlock(config.dim, config.num_heads, False)",
        CLIP,
    ),
    # tokenizer
    Mutant(
        "(-pairs[pair], vocab[pair[0]], vocab[pair[1]])",
        "(-pairs[pair], vocab[pair[1]], vocab[pair[0]])",
        TOKENIZER,
    ),
    Mutant(
        "best = min(pairwise(symbols), key=lambda pair: self.ranks.get(pair, never))",
        "best = next(iter(pairwise(symbols)))",
        TOKENIZER,
    ),
    Mutant(
        "counts.update(config.words(config.normalise(caption)))",
        "counts.update(config.words(caption))",
        TOKENIZER,
    ),
    Mutant('unicodedata.normalize("NFC", text)', "text", TOKENIZER),
    # training
    Mutant(
        "decay = min(self.decay, (1 + step) / (10 + step))",
        "decay = self.decay",
        TRAINING,
    ),
    Mutant(
        "generator.manual_seed(seed_for(settings.seed, step, rank))",
        "generator.manual_seed(seed_for(settings.seed, rank))",
        TRAINING,
    ),
    Mutant(
        "warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))",
        "warmup * (1 - step / self.steps)",
        TRAINING,
    ),
    Mutant(
        "batch = order[position * size : (position + 1) * size]",
        "batch = order[:size]",
        TRAINING,
    ),
    # losses
    Mutant("scheduler.target(x_start, noise, t))  # DDPM", "noise)  # DDPM", TRAINING),
    Mutant("u = (torch.arange(b, device=device) + u) / b", "pass", TRAINING),
    Mutant("model(images, ids[:, :longest])", "model(images, ids)", (*TRAINING, *CLIP)),
    Mutant(
        "0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())",
        "0.5 * (F.relu(1 + real).mean() + F.relu(1 - fake).mean())",
        LOSSES,
    ),
    Mutant("F.normalize(a, dim=1) - F.normalize(b, dim=1)", "a - b", LOSSES),
    Mutant(
        "kl_weight * posterior.kl().mean() / images[0].numel()",
        "kl_weight * posterior.kl().mean()",
        LOSSES,
    ),
    Mutant(".clamp(max=1e4).detach()", ".clamp(max=1.0).detach()", LOSSES),
    # optim
    Mutant("lerp_(p.grad, 1 - MOMENTUM)", "lerp_(p.grad, MOMENTUM)", OPTIM),
    Mutant("x = 3.4445 * x + ", "x = 2.4445 * x + ", OPTIM),
    Mutant(
        "ADAM_SIZE * math.sqrt(max(step.shape))", "ADAM_SIZE * math.sqrt(min(step.shape))", OPTIM
    ),
    Mutant(
        'p.mul_(1 - group["lr"] * group["weight_decay"])',
        'p.mul_(1 - group["weight_decay"])',
        OPTIM,
    ),
    # pipeline and maps
    Mutant("return uncond + self.guidance_scale", "return cond + self.guidance_scale", GUIDING),
    Mutant("x = x * scheduler.init_noise_sigma", "pass", PIPELINE),
    Mutant("unet(scheduler.scale_model_input(x, t), t, context)", "unet(x, t, context)", PIPELINE),
    Mutant("F.pixel_unshuffle(one_hot, factor)", "F.pixel_unshuffle(1 - one_hot, factor)", GUIDING),
    Mutant("(0, 0, 0, 0, 0, channels)", "(0, 0, 0, 0, channels, 0)", GUIDING),
    Mutant("return matches.int().argmax(dim=-1)", "return matches.int().argmin(dim=-1)", GUIDING),
    # editing
    Mutant(
        "x = mask * state.x + (1 - mask) * known",
        "x = (1 - mask) * state.x + mask * known",
        EDITING,
    ),
    Mutant(
        "torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b",
        "torch.sin(share * angle) * a + torch.sin((1 - share) * angle) * b",
        EDITING,
    ),
    # metrics
    Mutant("10 * torch.log10(4 / mse)", "10 * torch.log10(1 / mse)", METRICS),
    Mutant("middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)", "middle = p", ("test_intervals.py",)),
    Mutant("root_b.square().sum() - 2 * cross", "root_b.square().sum() - cross", METRICS),
    Mutant("(both / either).nanmean()", "(both / either).nan_to_num().mean()", METRICS),
    Mutant("c1, c2 = 0.01**2, 0.03**2", "c1, c2 = 0.03**2, 0.01**2", METRICS),
    Mutant("return low - bias, high - bias", "return low, high", ("test_intervals.py",)),
    # quality
    Mutant("inside[:, :, 1:] & inside[:, :, :-1]", "inside[:, :, 1:]", QUALITY),
    Mutant("ours, theirs = rows.double().sum(dim=0)", "ours, theirs = rows[0]", QUALITY),
    Mutant(
        "mse = errors.sum(dim=(1, 2)) / masks", "mse = errors.mean(dim=(1, 2)) / masks", QUALITY
    ),
    Mutant("kthvalue(k + 1)", "kthvalue(k)", QUALITY),
    Mutant(
        "precision, recall = covered(fake, real, k), covered(real, fake, k)",
        "precision, recall = covered(real, fake, k), covered(fake, real, k)",
        QUALITY,
    ),
    Mutant("4 * (images - smooth)", "4 * smooth", QUALITY),
    Mutant("return answers == both(len(rows))", "return answers != both(len(rows))", QUALITY),
    Mutant("return torch.isin(clusters, names[chosen])", "return clusters < 5", QUALITY),
    # files
    Mutant("            temporary.unlink()", "            pass", FILES),
    Mutant('json.dumps(value, indent=1) + "\\n"', "json.dumps(str(value))", (*FILES, *PRETRAINED)),
    # pretrained and weights
    Mutant(
        '[f"unexpected {key}" for key in given.keys() - wanted.keys()]',
        "[]",
        (*PRETRAINED, *WEIGHTS),
    ),
    Mutant("return model.eval()", "return model.train()", (*PRETRAINED, *WEIGHTS)),
    Mutant(
        '"eos_token_id": vocab_size - 1 if end == 2 else end',
        '"eos_token_id": end',
        (*WEIGHTS, "parity/test_clip_parity.py"),
    ),
    Mutant(
        "tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor",
        "pass",
        (*WEIGHTS, "parity/test_vae_parity.py"),
    ),
    # stable_diffusion
    Mutant(
        'pixels = 2 * as_tensor(image, "RGB").to(self.device, self.dtype) - 1',
        'pixels = as_tensor(image, "RGB").to(self.device, self.dtype)',
        SYSTEM,
    ),
    Mutant("images = (images / 2 + 0.5).clamp(0, 1)", "images = images / 2 + 0.5", SYSTEM),
]


def find(mutant: Mutant, package: Path) -> Path:
    """Return the module of the package in which the right line stands.

    Raises Refused unless it stands there exactly once, and every test file exists.
    """
    missing = [name for name in mutant.tests if not (ROOT / "tests" / name).is_file()]
    if missing:
        raise Refused(f"{mutant.right!r}: there is no tests/{missing[0]}")
    if mutant.right == mutant.wrong:
        raise Refused(f"{mutant.right!r} is not changed")
    places = [
        (path, path.read_text(encoding="utf-8").count(mutant.right))
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).parts[0] not in UNTAUGHT
    ]
    found = [path for path, count in places if count]
    if sum(count for _, count in places) != 1:
        names = ", ".join(str(path.relative_to(package)) for path in found) or "nowhere"
        raise Refused(f"{mutant.right!r} must stand in the package once, and stands in: {names}")
    return found[0]


def copy_package(folder: Path) -> Path:
    """Copy the package to where its tests find it, beside the checkpoints; return its folder."""
    (folder / "data").mkdir()
    (folder / "data" / "checkpoints").symlink_to(ROOT / "data" / "checkpoints")
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(ROOT / "minisd", folder / "minisd", ignore=ignored))


def run_tests(
    names: list[str], folder: Path, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the fast tests of these files against the package in `folder`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow"]
    command += [
        "-p",
        "no:cacheprovider",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(ROOT),
    ]
    command += [str(ROOT / "tests" / name) for name in names]
    settings = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        cwd=folder,  # python -m puts it before everything else
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def judge(mutant: Mutant) -> str:
    """Break the line in a copy and return "killed", "survived", or what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        package = copy_package(Path(name))
        path = find(mutant, package)
        source = path.read_text(encoding="utf-8").replace(mutant.right, mutant.wrong)
        path.write_text(source, encoding="utf-8")
        try:
            result = run_tests(list(mutant.tests), Path(name), TIMEOUT)
        except subprocess.TimeoutExpired:
            return "killed"
    kinds = {0: "survived", 1: "killed"}  # otherwise no test ran: the package cannot be imported
    return kinds.get(result.returncode, f"pytest ended with {result.returncode}: {result.stdout}")


def sound(chosen: list[Mutant]) -> bool:
    """Return whether the tests pass on an unbroken copy; if not, show why."""
    names = list(dict.fromkeys(name for mutant in chosen for name in mutant.tests))
    with tempfile.TemporaryDirectory() as name:
        copy_package(Path(name))
        result = run_tests(names, Path(name))
    if result.returncode:
        print(result.stdout, result.stderr, "The tests must pass before anything is broken.")
    return result.returncode == 0


def main(words: list[str]) -> int:
    """Print one row for each entry, and return the exit status."""
    chosen = [m for m in MUTANTS if all(word in f"{m.right} {m.tests}" for word in words)]
    try:
        places = [find(mutant, ROOT / "minisd") for mutant in chosen]
    except Refused as refused:
        print(refused)
        return 2
    if not chosen or not sound(chosen):
        return 2
    verdicts = []
    for mutant, path in zip(chosen, places, strict=True):
        start = time.perf_counter()
        verdicts.append(judge(mutant))
        seconds = time.perf_counter() - start
        module = path.relative_to(ROOT / "minisd")
        print(f"{verdicts[-1]:8}  {seconds:4.0f} s  {module}: {mutant.wrong}", flush=True)
    print(f"{verdicts.count('killed')} of {len(verdicts)} killed")
    if set(verdicts) - {"killed", "survived"}:
        return 2
    return int("survived" in verdicts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Break lines; the tests must notice.")
    parser.add_argument("words", nargs="*", help="only entries that contain all of these words")
    sys.exit(main(parser.parse_args().words))
