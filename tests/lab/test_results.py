from markdown_it import MarkdownIt

from minisd.files import read_json
from minisd.lab.results import Results, table

ABOUT = {"model": "abc", "samples": 3}


def test_an_interrupted_run_goes_on(tmp_path):
    path = tmp_path / "rows.json"
    first = Results(ABOUT, path, machine="abacus")
    assert first.rows == [] and not path.exists()
    first.add({"steps": 1, "interval": (0.5, 1.5)})
    again = Results(ABOUT, path, machine="another")
    assert again.rows == [{"steps": 1, "interval": [0.5, 1.5]}]
    again.add({"steps": 2})
    stored = read_json(path)
    assert stored == ABOUT | {"machine": "abacus", "rows": again.rows}
    assert [row["steps"] for row in stored["rows"]] == [1, 2]


def test_rows_about_another_model_are_not_taken_over(tmp_path):
    path = tmp_path / "rows.json"
    Results(ABOUT, path).add({"steps": 1})
    other = Results(ABOUT | {"model": "def"}, path)
    assert other.rows == []
    other.add({"steps": 2})
    assert read_json(path)["model"] == "def" and read_json(path)["rows"] == [{"steps": 2}]


def test_two_runs_share_the_rows_between_them(tmp_path):
    one, two = (Results(ABOUT, tmp_path / "rows.json") for _ in range(2))
    one.add({"steps": 1})
    two.add({"steps": 2})
    one.add({"steps": 3})
    assert one.rows == [{"steps": n} for n in (1, 2, 3)]


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = Results(ABOUT)
    results.add({"steps": 1})
    assert results.rows == [{"steps": 1}] and not list(tmp_path.iterdir())


def test_a_table_is_read_as_one_by_a_parser_of_markdown():
    """Also with a bar in a cell."""
    lines = table(["name", "n"], "lr", [("this|that", 1), ("plain", 2)])
    tokens = MarkdownIt("commonmark").enable("table").parse("\n".join(lines))
    cells = [token.content for token in tokens if token.type == "inline"]
    assert cells == ["name", "n", "this|that", "1", "plain", "2"]
    aligned = [token.attrs.get("style") for token in tokens if token.type == "td_open"]
    assert aligned == [None, "text-align:right"] * 2
