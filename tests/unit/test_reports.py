# SPDX-License-Identifier: Apache-2.0
"""Pages and cards are well-formed, self-contained, small, and say what the records say, whatever text they hold."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from report_records import HOSTILE, quantized_file, some_report, with_frontier

from lilliput.errors import PublishError, RecipeError
from lilliput.reports.axes import Axis
from lilliput.reports.card import card, code
from lilliput.reports.colour_steps import KLD_LIMITS, STEPS, step
from lilliput.reports.frontier import read_frontier
from lilliput.reports.frontier_plot import frontier_plot
from lilliput.reports.markup import element, json_island, text
from lilliput.reports.numbers import change, human_bytes, share, significant, with_error
from lilliput.reports.page import page
from lilliput.reports.records import Comparison, FrontierPoint, Interval, Report
from lilliput.reports.summary import headline_text
from lilliput.reports.writing import write_all
from lilliput.search.frontier import Point

VOID = {"meta", "input", "br"}
MEGABYTE = 1_000_000


class Page(HTMLParser):
    """Checks that elements close in order; keeps what the tests ask for."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[tuple[str, str]] = []
        self.islands: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.islands.append(data)
        self.words.append((self.open[-1] if self.open else "", data))

    @property
    def shown(self) -> str:
        return "".join(part for tag, part in self.words if tag not in ("script", "style"))


@pytest.fixture(scope="module")
def report() -> Report:
    return some_report()


@pytest.fixture(scope="module")
def parsed(report: Report) -> Page:
    return Page(page(report))


def test_a_page_is_well_formed_and_has_all_its_parts(parsed: Page) -> None:
    ids = {value for name, value in parsed.attributes if name == "id"}
    assert {"divergence", "text", "tensors", "weights", "made", "token-data", "card"} <= ids
    assert parsed.tags.count("svg") >= 2 + 2 * (3 + 3)


@pytest.mark.parametrize("files", [1, 2, 7])
def test_any_number_of_files_makes_a_well_formed_page(files: int) -> None:
    parsed = Page(page(with_frontier(some_report(files))))
    assert sum(name == "data-file" for name, _ in parsed.attributes) == files


def test_a_page_refers_to_nothing_outside_itself(report: Report, parsed: Page) -> None:
    names = {name for name, _ in parsed.attributes}
    assert not names & {"src", "href", "srcset", "action", "background", "poster", "xlink:href"}
    assert not any(name.startswith("on") for name in names)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(parsed.tags)
    style = "".join(part for tag, part in parsed.words if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?://|//[a-z]", page(report).replace("// ", ""))


def test_text_of_a_model_stays_text(parsed: Page) -> None:
    assert "img" not in parsed.tags
    assert parsed.tags.count("script") == 2
    assert HOSTILE[0] in parsed.shown
    assert HOSTILE[1] in parsed.shown
    assert "\u202e" not in parsed.shown
    assert "\\u202e\\u0000" in parsed.shown


def test_the_data_island_holds_every_candidate(report: Report, parsed: Page) -> None:
    data = json.loads(parsed.islands[0])
    first = report.passage.candidates[0]
    packed = data["original"][0]
    assert [packed[at + 1] for at in range(0, len(packed), 2)] == [round(item.probability, 4) for item in first]
    assert data["words"][packed[0]] == "·the"
    assert any(HOSTILE[0] in word.replace("·", " ") for word in data["words"])
    assert len(data["tokens"]) == len(report.passage.tokens)


def test_json_cannot_leave_its_island() -> None:
    parsed = Page(json_island("x", {"a": HOSTILE[0] + "<!--"}))
    assert parsed.tags == ["script"]
    assert json.loads(parsed.islands[0]) == {"a": HOSTILE[0] + "<!--"}


def test_the_first_sentence_says_what_the_record_says(report: Report, parsed: Page) -> None:
    file = report.files[report.headline]
    sentence = headline_text(report)
    assert sentence in parsed.shown
    found = re.search(
        r"is ([\d.]+) MB, (\d+) % .* differ by ([\d.]+) ± ([\d.]+) nats .* token ([\d.]+) ± ([\d.]+) %", sentence
    )
    assert found is not None
    size, part, kld, kld_error, same, same_error = map(float, found.groups())
    assert size == pytest.approx(file.bytes / 1e6, abs=0.005)
    assert part == pytest.approx(100 * file.bytes / report.original.bytes, abs=0.5)
    measured = file.measured
    # Rounding is at most half of the error bar's last digit, and an error bar has at least one.
    assert kld == pytest.approx(measured.mean_kld.value, abs=kld_error / 2)
    assert kld_error == pytest.approx(measured.mean_kld.half_width, rel=0.3)
    assert same == pytest.approx(100 * measured.same_top.value, abs=same_error / 2)
    assert same_error == pytest.approx(100 * measured.same_top.half_width, rel=0.3)
    assert measured.verdict.word in sentence
    assert measured.verdict.advice in sentence


def test_a_model_of_two_hundred_tensors_stays_below_a_megabyte() -> None:
    report = some_report(files=3, layers=25)
    assert len(report.files[0].tensors) > 200
    assert len(page(report).encode()) < MEGABYTE


def test_equal_records_give_equal_pages(report: Report) -> None:
    assert page(report) == page(some_report())


def test_the_json_of_a_report_has_no_number_that_json_lacks(report: Report) -> None:
    shown = json.loads(json.dumps(with_frontier(report).to_json(), allow_nan=False))
    assert shown["frontier"][0]["kld"]["low"] is None
    assert shown["files"][0]["measured"]["mean_kld"]["value"] == report.files[0].measured.mean_kld.value


def test_a_file_without_divergence_and_without_tensors_can_be_drawn() -> None:
    file = quantized_file()
    same = replace(file.measured, mean_kld=Interval(0.0, 0.0, 0.0), kld_percentiles=((50.0, 0.0), (100.0, 0.0)))
    bare = replace(file, measured=same, tensors=(), pictures=(), places=(), continuation=None)
    Page(page(replace(some_report(1), files=(bare,))))


def test_a_card_has_a_block_that_hubs_read(report: Report) -> None:
    content = card(report)
    block = yaml.safe_load(content.split("---\n")[1])
    assert block["base_model"] == "org/gulliver"
    assert block["base_model_relation"] == "quantized"
    assert (block["license"], block["library_name"], block["pipeline_tag"]) == ("apache-2.0", "gguf", "text-generation")
    assert block["datasets"] == ["text.txt"]
    assert block["tags"] == ["4-bit", "lilliput"]
    metrics = {metric["type"]: metric["value"] for metric in block["model-index"][0]["results"][0]["metrics"]}
    assert metrics["kl_divergence"] == report.files[0].measured.mean_kld.value
    for heading in ("How to run", "How it was made", "How it was measured", "Limits"):
        assert f"## {heading}" in content
    assert headline_text(report) in content


def test_names_cannot_break_a_card() -> None:
    report = some_report(name="x\n---\n# <script>alert(1)</script> [a](b)")
    evil = replace(report.files[0], file="a`|b\n```\n# h.gguf", label="- <b>|")
    content = card(replace(report, files=(evil,)))
    assert content.split("---\n")[2].startswith("\n# x")
    body = re.sub(r"`[^`]*`", "", content.split("---\n", 2)[2])
    assert re.search(r"(?<!\\)<(script|b|img)", body) is None
    rows = [line for line in content.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {8}
    assert code("a`b") == "``a`b``"


def test_numbers_have_the_digits_that_their_errors_justify() -> None:
    assert with_error(Interval(0.0064638, 0.005257, 0.007733)) == "0.0065 ± 0.0012"
    assert with_error(Interval(0.9389, 0.9289, 0.9487), factor=100, unit="%") == "93.9 ± 1.0 %"
    assert with_error(Interval(45.75, 33.0, 60.0)) == "46 ± 14"
    assert with_error(Interval(4.7367e-5, 4.2e-5, 5.2e-5), unit="nats") == "(4.7 ± 0.5) \u00d7 10⁻⁵ nats"
    assert with_error(Interval(0.123456, math.nan, math.nan)) == "0.1235"
    assert with_error(Interval(0.0, 0.0, 0.0)) == "0"
    assert with_error(Interval(1234.6, 1000.0, 1500.0)) == "1235 ± 250"
    assert change(Interval(1.0039, 1.0, 1.0078)) == "+0.4 ± 0.4 %"
    assert change(Interval(0.99, 0.985, 0.995)) == "\u22121.0 ± 0.5 %"
    assert [significant(value, 2) for value in (0.0, 123.4, 0.0123, 3.21e-7)] == [
        "0",
        "123",
        "0.012",
        "3.2 \u00d7 10⁻⁷",
    ]
    assert [human_bytes(value) for value in (12, 6_015_616, 4.1e9)] == ["12 B", "6.02 MB", "4.10 GB"]
    assert [share(1, 3), share(1, 30)] == ["33 %", "3.3 %"]


def test_colour_steps_follow_their_limits() -> None:
    assert step(0.0, KLD_LIMITS) == 0
    assert [step(limit, KLD_LIMITS) for limit in KLD_LIMITS] == list(range(1, STEPS))
    assert step(math.inf, KLD_LIMITS) == STEPS - 1


def test_axes_keep_values_inside_and_ticks_round() -> None:
    linear, log = Axis(0.0, 10.0, 100.0, 200.0), Axis(1e-5, 1.0, 0.0, 50.0, is_log=True)
    assert [linear.at(value) for value in (-5.0, 0.0, 5.0, 99.0)] == [100.0, 100.0, 150.0, 200.0]
    assert log.at(0.0) == 0.0
    assert log.at(1e-5 * 10**2.5) == pytest.approx(25.0)
    assert linear.ticks() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert log.ticks(5) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert Axis(0.02, 0.3, 0.0, 1.0, is_log=True).ticks() == pytest.approx([0.02, 0.05, 0.1, 0.2])


def test_attributes_are_escaped() -> None:
    assert element("p", "a<b", title='"x"', hidden=True, lang=None) == '<p title="&quot;x&quot;" hidden>a&lt;b</p>'
    assert text("\u2067evil\x1b[0m") == "\\u2067evil\\u001b[0m"


def test_a_frontier_is_read_in_each_of_its_spellings(tmp_path: Path) -> None:
    path = tmp_path / "frontier.json"
    points = [
        {"bytes": 200, "kl": {"mean": 0.1, "low": 0.05, "high": 0.2}, "bits_per_weight": 4, "speed": None},
        {"bytes": 100, "kl": 0.2, "kl_stderr": 0.01, "formats": {"a": "Q4_K"}, "later": 1},
    ]
    path.write_text(json.dumps({"points": points, "sensitivity": {"a": 0.001, "b": "?"}}))
    found = read_frontier(path)
    assert [point.bytes for point in found.points] == [100, 200]
    assert found.points[0].kld.low == pytest.approx(0.2 - 1.96 * 0.01)
    assert found.points[1].kld == Interval(0.1, 0.05, 0.2)
    assert found.sensitivity == {"a": 0.001}
    path.write_text(json.dumps(points))
    assert len(read_frontier(path).points) == 2


def test_the_frontier_of_a_search_is_read_as_it_is_kept(tmp_path: Path) -> None:
    point = Point(4_500_000, 3.9, 0.02, 0.021, 0.019, 0.023, 31.5, "exact", {"token_embd.weight": "q6_k"})
    unsure = replace(point, bytes=5_000_000, kl=0.01, kl_low=math.nan, kl_high=math.nan, speed=None)
    path = tmp_path / "frontier.json"
    kept = {"schema": 1, "sensitivity": {"token_embd.weight": 0.001}, "frontier": [point.to_json(), unsure.to_json()]}
    path.write_text(json.dumps(kept, allow_nan=False))
    first, second = read_frontier(path).points
    assert (first.bytes, first.bits_per_weight, first.speed) == (4_500_000, 3.9, 31.5)
    assert first.kld == Interval(0.021, 0.019, 0.023)
    assert second.kld.value == 0.01
    assert math.isnan(second.kld.low)
    assert read_frontier(path).sensitivity == {"token_embd.weight": 0.001}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[", "not JSON"),
        ("{}", "points"),
        ("[1]", "point 1"),
        ('[{"bytes": 0, "kl": 1}]', "bytes"),
        ('[{"bytes": 5}]', "kl"),
    ],
)
def test_a_damaged_frontier_is_refused_by_name(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "frontier.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=named):
        read_frontier(path)


def test_all_files_are_written_or_none(tmp_path: Path) -> None:
    page_path, card_path = tmp_path / "report.html", tmp_path / "README.md"
    card_path.write_text("mine")
    with pytest.raises(PublishError, match="--force"):
        write_all({page_path: "new", card_path: "new"}, overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]
    assert card_path.read_text() == "mine"
    with pytest.raises(UnicodeEncodeError):
        write_all({page_path: "new", card_path: "\ud800"}, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]
    write_all({page_path: "new", card_path: "new"}, overwrite=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.html": "new", "README.md": "new"}
    with pytest.raises(PublishError, match="no such folder"):
        write_all({tmp_path / "no" / "x.html": "new"}, overwrite=False)
    with pytest.raises(PublishError, match="cannot be one file"):
        write_all({page_path: "a", tmp_path / "no" / ".." / "report.html": "b"}, overwrite=True)


def test_an_infinite_divergence_is_shown_as_such() -> None:
    file = quantized_file()
    klds = (math.inf, *file.passage.klds[1:])
    broken = replace(
        file.measured, mean_kld=Interval(math.inf, 1.0, math.inf), kld_percentiles=((50.0, 0.1), (100.0, math.inf)),
        perplexity=Interval(math.inf, 5.0, math.inf),
    )  # fmt: skip
    worst = replace(file, measured=broken, passage=replace(file.passage, klds=klds))
    report = replace(some_report(2), files=(worst, quantized_file("other")))
    assert "∞" in Page(page(report)).shown
    assert "∞" in card(report)
    assert json.loads(Page(page(report)).islands[0])["files"][0]["kld"][0] is None


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_of_models_files_and_tensors_stay_text(hostile: str) -> None:
    report = some_report(name=hostile)
    file = report.files[0]
    rows = tuple(replace(row, name=hostile, part=hostile, method=hostile) for row in file.tensors)
    shown = tuple(replace(item, tensor=hostile, group_name=hostile) for item in file.pictures)
    text_record = replace(report.text, name=hostile)
    evil = replace(file, label=hostile, file=hostile, tensors=rows, pictures=shown)
    parsed = Page(page(replace(report, files=(evil, report.files[1]), text=text_record, command=hostile)))
    assert "img" not in parsed.tags
    assert parsed.tags.count("script") == 2
    assert not any(name.startswith("on") for name, _ in parsed.attributes)


def test_only_files_that_no_other_beats_are_joined_by_a_line() -> None:
    report = some_report(3)
    sizes = {0: 5_000_000, 1: 6_000_000, 2: 7_000_000}
    klds = {0: 0.1, 1: 0.2, 2: 0.01}
    files = tuple(
        replace(file, bytes=sizes[at], measured=replace(file.measured, mean_kld=Interval(klds[at], klds[at], klds[at])))
        for at, file in enumerate(report.files)
    )
    parsed = Page(page(replace(report, files=files)))
    lines = [value for name, value in parsed.attributes if name == "points"]
    assert len(lines[0].split()) == 2


def test_many_files_are_paired_with_their_neighbours_in_size_only() -> None:
    report = some_report(5)
    names = [file.label for file in report.files]
    pairs = tuple(Comparison(a, b, Interval(0.5, 0.4, 0.6), "") for at, a in enumerate(names) for b in names[at + 1 :])
    shown = Page(page(replace(report, paired=pairs))).shown
    assert shown.count("0.500 [0.400, 0.600]") == 4
    few = replace(report, files=report.files[:2], paired=(replace(pairs[0], ratio=Interval(2.0, math.nan, math.nan)),))
    assert "too few windows to tell" in Page(page(few)).shown


def test_names_in_the_plot_keep_apart_and_inside() -> None:
    report = some_report(4)
    files = tuple(
        replace(file, label=f"model-with-a-long-name-{at}", bytes=6_000_000 + 10_000 * at)
        for at, file in enumerate(report.files)
    )
    chart = frontier_plot(replace(report, files=files))
    names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"(?: text-anchor="(\w+)")? class="point-name">([^<]+)<', chart)
    assert len(names) == 4
    spans = [
        (float(x) - (7 * len(word) if anchor == "end" else 0), float(y), 7 * len(word)) for x, y, anchor, word in names
    ]
    for at, (left, height, width) in enumerate(spans):
        assert left >= 0
        assert left + width <= 480
        for other_left, other_height, other_width in spans[at + 1 :]:
            is_apart = left + width <= other_left or other_left + other_width <= left
            assert is_apart or abs(height - other_height) >= 14


def test_points_of_a_search_far_from_the_files_do_not_stretch_the_plot() -> None:
    report = some_report(2)
    points = tuple(
        FrontierPoint(size, None, Interval(kld, kld, kld))
        for size, kld in ((5_500_000, 0.02), (6_000_000, 0.01), (7_000_000, 0.005), (18_000_000, 1e-7))
    )
    chart = frontier_plot(replace(report, frontier=points))
    assert chart.count("<circle") - 1 == 3
    assert "10⁻⁷" not in chart
