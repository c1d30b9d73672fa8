"""What benchmarks write into documents, and the picture of costs."""

import io

import _documents
import chex
import cost_growth
import fine_tuning_memory
import guarantees
import peers
import pytest
from _documents import get_markers, insert

PAGES = [
    ("peers", peers.PAGE),
    ("cost_growth", cost_growth.PAGE),
    ("fine_tuning_memory", fine_tuning_memory.PAGE),
    ("guarantees", guarantees.PAGE),
]


@pytest.mark.parametrize(("name", "document"), PAGES)
def test_a_text_replaces_what_is_between_the_markers(name, document, tmp_path):
    copy = tmp_path / document.name
    text = document.read_text()
    copy.write_text(text)
    insert(copy, name, "| new |")
    begin, end = get_markers(name)
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    assert copy.read_text() == f"{before}{begin}\n| new |\n{end}{after}"


@pytest.mark.parametrize("form", ["", "{0}", "{1} {0}", "{0} {0} {1}", "{0} {1} {1}"])
def test_a_document_without_markers_is_refused(form, tmp_path):
    document = tmp_path / "page.md"
    document.write_text(form.format(*get_markers("peers")))
    with pytest.raises(ValueError, match="once each, in this order"):
        insert(document, "peers", "| new |")


def test_markers_name_the_script():
    for name, _ in PAGES:
        assert (_documents.ROOT / "benchmarks" / f"{name}.py").exists()
        assert f"benchmarks/{name}.py" in get_markers(name)[0]


def make_measured():
    points = {"10": (200.0, 100.0), "1000": (3000.0, 2000.0)}
    both = {
        size: {name: {"median": figure} for name, figure in zip(NAMES, figures, strict=True)}
        for size, figures in points.items()
    }
    return dict.fromkeys(cost_growth.SERIES, both)


NAMES = cost_growth.LIBRARY, cost_growth.BARE


def test_the_picture_has_four_panels_and_is_the_same_each_time():
    pictures = [io.BytesIO(), io.BytesIO()]
    for picture in pictures:
        cost_growth.draw(make_measured(), picture)
    first, second = (picture.getvalue().decode() for picture in pictures)
    assert first == second
    assert all(what in first for what in cost_growth.SERIES)


def test_the_table_has_milliseconds_and_ratios():
    twice = {"10": {"median": 2.0}, "1000": {"median": 1.5}}
    ratios = dict.fromkeys(cost_growth.SERIES, twice)
    environment = {
        "date": "2026-01-02T03:04:05",
        "device": "cpu: cpu",
        "processor": "a CPU",
        "cores": 2,
        "versions": {"jax": "0.10.2"},
    }
    lines = cost_growth.render(make_measured(), ratios, environment).splitlines()
    assert lines[0].endswith("(cost_growth.svg)")
    assert "| metrics | 10 | 0.2 | 0.1 | 2 |" in lines
    assert "| metrics | 1,000 | 3 | 2 | 1.5 |" in lines
    assert lines[-1] == "2026-01-02, cpu: cpu, a CPU, 2 cores; jax 0.10.2."


@pytest.mark.parametrize(
    "case", [cost_growth.Case(metrics=5), cost_growth.Case(leaves=12, hooks=3)]
)
def test_library_and_bare_jax_train_the_same(case):
    params, run = cost_growth.make_epoch(case, products=2)
    assert len(params) == case.leaves
    one, other = (make(case, params, run)(3) for make in (cost_growth.library, cost_growth.bare))
    chex.assert_trees_all_close(one, other)
    assert one["leaf_0"].tolist() == [0.125] * 8
