"""The report is one self-contained, escaped document; the terminal shows the same numbers."""

import base64
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxpgd.errors import InputError
from jaxpgd.experiment.report.figure import panels, save
from jaxpgd.experiment.report.page import Report, text_table

ROWS = [
    {"arm": "real", "mean": 1067.512, "seeds": 4},
    {"arm": "guided <b>", "mean": np.float32(0.123456), "note": float("nan")},
]


class Tags(HTMLParser):
    """Collects tags and checks that they close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_document_is_whole_and_self_contained(tmp_path):
    (tmp_path / "a.png").write_bytes(b"picture")
    report = Report("Run <1>").text("first\n\nsecond & last").table("Returns", ROWS, "note")
    report.figure("Trajectories", tmp_path / "a.png", "caption").details("Config", "a < b")
    path = report.write(tmp_path / "sub" / "report.html")
    text = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    names = [tag for tag, _ in tags.seen]
    assert names.count("p") == 3 and names.count("tr") == 3 and "pre" in names and "script" not in names
    (source,) = [attributes["src"] for tag, attributes in tags.seen if tag == "img"]
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == b"picture"
    assert "Run &lt;1&gt;" in text and "guided &lt;b&gt;" in text and "a &lt; b" in text and "second &amp; last" in text
    assert "http" not in text and [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_figures_keep_a_width_at_which_they_can_be_read(tmp_path):
    save(panels(1, width=5)[0], tmp_path / "a.png")
    assert ' style="min-width: min(270px, 58rem)"' in Report("x").figure("t", tmp_path / "a.png").html()


def test_lists_are_escaped_and_none_is_left_out():
    assert "<ul><li>a &lt; b</li><li>c</li></ul>" in Report("x").points(["a < b", "c"]).html()
    assert Report("x").points([]).html() == Report("x").html()


def test_short_cells_are_not_broken_and_long_ones_are():
    text = Report("x").table("t", [{"name": "[-26.98, -19.53]", "why": "words " * 20}]).html()
    assert '<td class="short">[-26.98, -19.53]</td>' in text and "<td>words" in text


def test_a_long_heading_of_narrow_cells_is_broken_a_few_times_at_most():
    text = Report("x").table("t", [{"distance to the weighted truth of its coefficient": 1.0, "short": 2.0}]).html()
    assert '<th class="number long">distance' in text and '<th class="number">short' in text and 'td class="number"' in text


def test_a_missing_figure_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"absent\.png"):
        Report("x").figure("t", tmp_path / "absent.png")


def test_text_table_aligns_numbers_right_and_leaves_missing_cells_empty():
    assert text_table(ROWS).splitlines() == [
        "arm           mean  seeds  note",
        "----------  ------  -----  ----",
        "real        1067.5      4",
        "guided <b>  0.1235          n/a",
    ]
    assert text_table([]) == ""
