"""What the documentation reads from the code when it is built: docstrings, settings, commands, links."""

import re
import sys
from pathlib import Path

import pytest

from jaxpgd.experiment import Config
from jaxpgd.experiment.command_line import COMMANDS
from jaxpgd.experiment.config_files import to_dict

pytest.importorskip("sphinx", reason="the documentation's packages are not installed: make docs")
sys.path.append(str(Path(__file__).parents[1] / "docs" / "_ext"))
import generated_tables
import markdown_docstrings
import repository_pages


@pytest.mark.parametrize(
    ("text", "rst"),
    [
        ("x [T, D] of `sample`s", r"x [T, D] of ``sample``\ s"),
        ("`a * b`, |x| and n_", r"``a * b``, \|x\| and n\_"),
        ("a name of\n`two\nlines`.", "a name of\n``two lines``."),
        ("a_t and *args", r"a_t and \*args"),
    ],
)
def test_docstrings_keep_code_spans_and_escape_the_rest(text, rst):
    assert markdown_docstrings.as_rst(text) == rst


def test_lists_get_blank_lines_and_indented_blocks_stay_as_they_are():
    text = ["Kinds:", "- a:", "  more;", "- b.", "Then:", "", "    x = *y*  (3)", "    z", "", "End."]
    found = markdown_docstrings.paragraphs(text)
    wanted = ["Kinds:", "", "- a:", "  more;", "- b.", "", "Then:", "", "::", "", "    x = *y*  (3)", "    z", "", "End.", ""]
    assert found == wanted


def test_the_table_of_settings_has_every_setting_with_its_default():
    text, found, section = generated_tables.settings(Config), {}, ""
    for line in text.splitlines():
        if line.startswith("### "):
            section = line.removeprefix("### ").strip("`[]")
        elif row := re.match(r"\| `(\w+)` \| `(.*?)` \|", line):
            found[f"{section}.{row[1]}".removeprefix("Top level.")] = row[2]

    def leaves(values, prefix=""):
        for key, value in values.items():
            yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    wanted = dict(leaves(to_dict(Config())))
    assert set(found) == set(wanted)
    assert (found["guidance.coefficient"], found["data.name"], found["arms"]) == (
        "1", '"point2d"', '["real", "unguided", "guided"]',
    )  # fmt: skip


def test_the_reference_of_commands_has_every_argument():
    text = generated_tables.commands()
    for command in COMMANDS.values():
        part = text.split(f"### `jaxpgd {command.name}`")[1].split("### ")[0]
        assert [o.option for o in command.options if f"| `{o.option}" not in part] == []


def test_links_are_those_of_markdown_and_not_addresses_or_anchors():
    text = "[a](b.md#c) ![d](../e.png) [f](https://g.org) [h](#i) [`j` [k]](l.py)"
    assert [m["path"] for m in repository_pages.LINK.finditer(text)] == ["b.md", "../e.png", "l.py"]
