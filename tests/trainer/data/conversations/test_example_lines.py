"""JSON lines: a broken one is named by its number."""

import pytest

from trainer.data.conversations.example_lines import read_json_lines


def read(file, **settings):
    return [line.values for line in read_json_lines(file, "data.chat", **settings)]


@pytest.fixture
def file(tmp_path):
    def write(content):
        (tmp_path / "a.jsonl").write_bytes(content)
        return tmp_path / "a.jsonl"

    return write


def test_objects_are_read_in_order_and_blank_lines_are_skipped(file):
    lines = '\ufeff{"a": 1}\n\n  \r\n{"a": "é\u2028"}'
    assert read(file(lines.encode())) == [{"a": 1}, {"a": "é\u2028"}]


def test_parts_share_the_lines(file):
    written = file(b"\n".join(b'{"a": %d}' % n for n in range(7)))
    first, second = (read(written, part=part) for part in ((0, 0.6), (0.6, 1)))
    assert [one["a"] for one in first] == [0, 1, 2, 3]
    assert [one["a"] for one in second] == [4, 5, 6]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.jsonl is empty"),
        (b"\n \n", "a.jsonl is empty"),
        (b'{"a": 1}\n\n{"a": \n', r"a.jsonl, line 3, is broken: Expecting value.*begins '{\"a\":'"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl, line 2, is broken: .*utf-8"),
        (b'[{"a": 1}]\n', "a.jsonl, line 1, is a list: write each of its entries on a line"),
        (b'{"a": 1}\n3\n', "a.jsonl, line 2, is 3$"),
    ],
)
def test_what_is_no_json_lines_is_an_error(file, content, said):
    with pytest.raises(ValueError, match=said):
        read(file(content))


@pytest.mark.parametrize("part", [(0.5, 0.5), (0, 2), (-1, 1)])
def test_a_part_that_is_none_is_an_error(file, part):
    with pytest.raises(ValueError, match=r"part must be \(start, end\)"):
        read(file(b"{}"), part=part)


def test_a_part_without_a_line_is_an_error(file):
    with pytest.raises(ValueError, match=r"part \(0, 0.5\) of .* must have a line; the file has 1"):
        read(file(b"{}"), part=(0, 0.5))
