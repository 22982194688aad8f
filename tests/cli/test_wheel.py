"""The wheel brings everything: modules, command and bundled checkpoints."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def succeed(*command, **settings):
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **settings
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the tracked files, as a fresh clone would build it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a repository: which files belong to the package is not known")
    clone, dist = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("dist")
    for name in succeed("git", "-C", ROOT, "ls-files", "-z").split("\0")[:-1]:
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    succeed(*pip, "wheel", clone, "--no-deps", "--no-build-isolation", "-w", dist)
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    succeed(*pip, "install", "--target", target, "--no-deps", "--no-index", wheel)
    return target


def python(installed, elsewhere, *arguments):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return succeed(sys.executable, *arguments, cwd=elsewhere, env=environment)


def tracked(folder):
    names = succeed("git", "-C", ROOT, "ls-files", folder).split()
    return {name for name in names if (ROOT / name).is_file()}


@pytest.mark.slow
def test_the_wheel_holds_all_modules_and_checkpoints_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    modules = tracked("minisd")
    checkpoints = {
        name.replace("data/checkpoints/", "minisd/checkpoints/", 1)
        for name in tracked("data/checkpoints")
    }
    assert {"minisd/cli.py", "minisd/data/digits.py"} <= modules
    assert "minisd/checkpoints/digits-ddpm/model.safetensors" in checkpoints
    assert names - {"minisd/checkpoints/.gitkeep"} == (modules | checkpoints) - {
        "minisd/checkpoints/.gitkeep"
    }
    assert wheel.stat().st_size < 70e6


@pytest.mark.slow
def test_the_installed_package_runs_from_elsewhere(installed, tmp_path):
    code = (
        "import minisd; from minisd.pretrained import bundled; print(minisd.__file__, *bundled())"
    )
    file, *names = python(installed, tmp_path, "-c", code).split()
    assert Path(file).is_relative_to(installed)
    here = {path.split("/")[2] for path in tracked("data/checkpoints") if path.count("/") > 2}
    assert set(names) == here >= {"digits-judge", "digits-ddpm"}

    listed = python(installed, tmp_path, "-m", "minisd.cli", "info")
    for name in ("digits-judge", "digits-ddpm"):
        (line,) = [line for line in listed.splitlines() if line.startswith(name)]
        assert "not bundled" not in line
    card = python(installed, tmp_path, "-m", "minisd.cli", "info", "digits-ddpm")
    assert card.startswith("# digits-ddpm")

    python(
        *(installed, tmp_path, "-m", "minisd.cli", "generate", "digits-ddpm"),
        *("-n", "2", "--steps", "2", "-o", "two.png"),
    )
    assert (tmp_path / "two.png").stat().st_size > 200


@pytest.mark.slow
def test_the_wheel_declares_command_licence_and_requirements(installed):
    (metadata,) = installed.glob("minisd-*.dist-info")
    assert "minisd = minisd.cli:main" in (metadata / "entry_points.txt").read_text()
    assert (metadata / "licenses" / "LICENSE").exists()
    text = (metadata / "METADATA").read_text().replace("_", "-")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Version: {project['version']}" in text
    for requirement in project["dependencies"]:
        assert f"Requires-Dist: {requirement.replace('_', '-')}" in text
