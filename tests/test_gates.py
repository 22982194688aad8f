"""What guards the repository: the script of CI, its workflows, and the hooks before a commit."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read_yaml(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture
def machine(tmp_path):
    """A made-up machine with .ci/run, whose commands write down that they were called."""
    (tmp_path / "repo" / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / "repo" / ".ci" / "run")
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname", "env"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    (tmp_path / "repo" / ".venv" / "bin").mkdir(parents=True)
    for command in ("bin/make", "bin/chromium", "bin/apt-get", "repo/.venv/bin/python"):
        write_command(tmp_path / command)
    write_command(tmp_path / "bin" / "id", "echo 0")
    return tmp_path


def write_command(path, then=":"):
    name = path.name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "$CALLS"\n{then}\n')
    path.chmod(0o755)


def run_ci(machine):
    """Return the exit status of .ci/run, and what it called."""
    calls = machine / "calls"
    calls.touch()
    environment = {"PATH": str(machine / "bin"), "CALLS": str(calls), "CI": "true"}
    result = subprocess.run([machine / "repo" / ".ci" / "run"], env=environment, cwd=machine)
    return result.returncode, calls.read_text().splitlines()


unix = pytest.mark.skipif(os.name == "nt", reason="a shell script")


@unix
def test_ci_runs_every_gate(machine):
    status, calls = run_ci(machine)
    assert status == 0
    assert calls == ["make lint", "python -m pip check", "make fast COVER=--cov", "make test"]


@unix
@pytest.mark.parametrize(
    ("command", "call"),
    [
        ("bin/make", "make lint"),
        ("repo/.venv/bin/python", "python -m pip check"),
        ("bin/make", "make fast COVER=--cov"),
        ("bin/make", "make test"),
    ],
)
def test_ci_fails_where_one_gate_fails(machine, command, call):
    path = machine / command
    write_command(path, f'[ "{path.name} $*" != "{call}" ]')
    status, calls = run_ci(machine)
    assert status != 0
    assert calls[-1] == call


@unix
def test_ci_installs_the_browser_or_fails(machine):
    (machine / "bin" / "chromium").unlink()
    status, calls = run_ci(machine)
    assert status == 0
    assert "chromium" in calls[2].split()
    write_command(machine / "bin" / "apt-get", "exit 100")
    status, _ = run_ci(machine)
    assert status == 100


def test_workflows_are_well_formed():
    assert WORKFLOWS
    for path in WORKFLOWS:
        workflow = read_yaml(path)
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert job["runs-on"] and job["timeout-minutes"]
            assert all(("run" in step) != ("uses" in step) for step in job["steps"])


def test_the_oldest_python_is_the_one_that_the_package_promises():
    matrix = read_yaml(ROOT / ".github/workflows/tests.yml")["jobs"]["fast"]["strategy"]["matrix"]
    pythons = {each["versions"]: each["python"] for each in matrix["include"]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={pythons['oldest']}"
    assert set(matrix["versions"]) == set(pythons)


def test_every_requirement_has_a_lower_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
        assert ">=" in requirement


def test_hooks_and_make_lint_run_the_same_commands():
    (repo,) = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    hooks = {hook["entry"].removeprefix(".venv/bin/python ") for hook in repo["hooks"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lint = makefile.partition("\nlint:")[2].partition("\n\n")[0]
    commands = {line.removeprefix("\t$(RUN) ") for line in lint.splitlines()[1:]}
    assert hooks == commands
    assert all(hook["language"] == "system" for hook in repo["hooks"])


def test_what_the_gates_run_is_pinned():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    assert {"ruff", "basedpyright", "pytest", "pytest-cov", "pytest-xdist", "nbval"} <= pinned
