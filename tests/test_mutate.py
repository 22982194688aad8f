"""The list of wrong lines fits the package, and its verdicts are right."""

import mutate
import pytest
from mutate import MUTANTS, Mutant, Refused, find, judge, main, sound

PACKAGE = {
    "minisd/__init__.py": "",
    "minisd/sums.py": "def plus(a, b):\n    return a + b  # the sum\n",
    "tests/test_sums.py": "import pytest\nfrom minisd.sums import plus\n\n"
    "def test_plus():\n    assert plus(1, 2) == 3\n\n"
    "@pytest.mark.slow\ndef test_slow():\n    assert False\n",
    "pyproject.toml": '[tool.pytest.ini_options]\nmarkers = ["slow"]\n',
}
WRONG = Mutant("return a + b", "return a - b", ("test_sums.py",))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A made-up project in place of this one."""
    for name, source in PACKAGE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    (tmp_path / "data" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return tmp_path


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.right)
def test_every_entry_fits_the_package(mutant):
    find(mutant, mutate.ROOT / "minisd")


def test_all_that_is_taught_is_tried():
    modules = {find(mutant, mutate.ROOT / "minisd").stem for mutant in MUTANTS}
    assert len(MUTANTS) >= 40
    assert modules >= {
        *("schedules", "ddim", "ddpm", "pndm", "euler", "heun", "dpm_solver", "layers", "unet"),
        *("vae", "clip", "tokenizer", "training", "optim", "losses", "pipeline", "editing"),
        *("maps", "metrics", "files", "pretrained", "weights", "stable_diffusion"),
    }


@pytest.mark.parametrize(
    ("wrong", "verdict"),
    [
        ("return a - b", "killed"),
        ("return b + a", "survived"),
        ("return a +", "pytest ended with 2"),
    ],
)
def test_a_line_is_broken_in_a_copy_alone(project, wrong, verdict):
    assert judge(WRONG._replace(wrong=wrong)).startswith(verdict)
    assert (project / "minisd" / "sums.py").read_text() == PACKAGE["minisd/sums.py"]


@pytest.mark.parametrize(
    "entry",
    [
        WRONG._replace(right="return a * b"),
        WRONG._replace(right="a"),
        WRONG._replace(wrong=WRONG.right),
        WRONG._replace(tests=("test_products.py",)),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(project, entry):
    with pytest.raises(Refused):
        find(entry, project / "minisd")


def test_the_exit_status_tells_the_result(project, monkeypatch, capsys):
    harmless = WRONG._replace(wrong="return b + a")
    for mutants, status in (([WRONG], 0), ([WRONG, harmless], 1), ([], 2)):
        monkeypatch.setattr(mutate, "MUTANTS", mutants)
        assert main([]) == status
    assert "1 of 2 killed" in capsys.readouterr().out
    assert main(["no such word"]) == 2
    (project / "tests" / "test_sums.py").write_text("def test_wrong():\n    assert False\n")
    assert not sound([WRONG])  # a test that fails anyway tells nothing
    assert main([]) == 2
