"""`pagedkv models`: the table, parts of it, and what is said of a name that is not in it."""

import json

import pytest

from pagedkv.catalog import Catalog, CatalogEntry
from pagedkv.cli import main
from pagedkv.cli.models import print_table

SMALL = Catalog(
    "9.9",
    (
        CatalogEntry("alpha", "text", "fast", ""),
        CatalogEntry("beta", "text", "slow", "a|b * <c>"),
        CatalogEntry("gamma", "state", "refused", "layer 0 keeps a state"),
        CatalogEntry("delta", "multimodal", "refused", "it is a multimodal model"),
    ),
)


def output_of(capsys, *arguments):
    assert main(["models", *arguments]) == 0
    return capsys.readouterr().out


def test_all_types_are_listed_with_the_share_of_those_that_run(capsys):
    lines = output_of(capsys).splitlines()
    catalog = Catalog.read()
    names = [entry.model_type for entry in catalog.entries]
    assert [
        line.split()[0] for line in lines if line.split()[:1] and line.split()[0] in names
    ] == names
    assert catalog.coverage() in lines
    assert catalog.transformers_version in lines[-1]


def test_a_name_and_a_status_choose_lines(capsys):
    lines = output_of(capsys, "--type", "Qwen3-Moe").splitlines()
    assert [line.split()[:3] for line in lines] == [["qwen3_moe", "text", "fast"]]
    lines = output_of(capsys, "--type", "bl", "--status", "slow").splitlines()
    assert lines[0].startswith("bloom")
    assert "attention interface" in lines[0]


def test_long_notes_go_on_below_their_own_column_on_a_terminal(capsys):
    print_table(Catalog.read().select("gemma3n"), width=80)
    lines = capsys.readouterr().out.splitlines()
    column = lines[0].index("it is a multimodal")
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80
    assert lines[1][:column].isspace()


def test_a_pipe_gets_one_line_per_type(capsys):
    lines = output_of(capsys, "--type", "gemma3n").splitlines()
    assert [line.split()[0] for line in lines] == ["gemma3n", "gemma3n_text"]
    assert max(map(len, lines)) > 80


def test_json_holds_the_same_lines(capsys):
    printed = json.loads(output_of(capsys, "--json", "--type", "llama4"))
    catalog = Catalog.read()
    assert printed["transformers"] == catalog.transformers_version
    assert printed == catalog.as_json(catalog.select("llama4"))
    assert {model["model_type"] for model in printed["models"]} == {"llama4", "llama4_text"}


def test_an_unknown_type_is_an_error_that_names_what_is_near(capsys):
    assert main(["models", "--type", "mistrall"]) == 1
    assert "mistral" in capsys.readouterr().err.split("near it:")[1]


def test_the_share_is_counted_over_text_models_with_and_without_state():
    said = SMALL.coverage()
    assert said.startswith("Of 3 text-only types 2 run (67 %): 1 on the fast path, 1 on the slow")
    assert said.endswith("Of the 2 that keep nothing but keys and values, 2 run (100 %).")


def test_a_table_is_read_as_it_was_written(tmp_path):
    SMALL.write(tmp_path / "table.tsv")
    assert Catalog.read(tmp_path / "table.tsv") == SMALL


@pytest.mark.parametrize(
    "line", ["alpha\ttext\tfast", "alpha\ttext\tquick\t", "alpha\tall\tfast\t"]
)
def test_a_damaged_line_is_refused(tmp_path, line):
    path = tmp_path / "table.tsv"
    SMALL.write(path)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match="must be type, scope, status and notes"):
        Catalog.read(path)


def test_notes_cannot_break_the_page():
    assert "| beta | text | slow | a\\|b \\* \\<c> |" in SMALL.as_markdown()
    assert "| wrong |" not in SMALL.as_markdown()
