"""Event files survive a kill in the middle of a line."""

import json

from workbench.events import append_lines, event_log, read_lines


def test_lines_come_back_in_order_and_from_an_offset(tmp_path):
    file = tmp_path / "events.jsonl"
    emit = event_log(file)
    emit("loss", 0.5, step=1)
    first, offset = read_lines(file)
    emit("progress", step=2, total=4, unit="steps")
    second, end = read_lines(file, offset)
    assert [row["name"] for row in first] == ["loss"]
    assert [(row["step"], row["total"]) for row in second] == [(2, 4)]
    assert read_lines(file, end) == ([], end)


def test_a_torn_line_is_waited_for_and_later_skipped(tmp_path):
    file = tmp_path / "events.jsonl"
    append_lines(file, [{"a": 1}])
    with file.open("ab") as torn:
        torn.write(b'{"a": 2, "text": "\xc3')  # cut inside a character, too
    rows, offset = read_lines(file)
    assert rows == [{"a": 1}]
    append_lines(file, [{"a": 3}])
    assert read_lines(file, offset)[0] == [{"a": 3}]
    assert [json.loads(line) for line in (b"\n".join(file.read_bytes().splitlines()[::2])).splitlines()] == [
        {"a": 1},
        {"a": 3},
    ]


def test_no_file_is_no_rows(tmp_path):
    assert read_lines(tmp_path / "none.jsonl", 7) == ([], 7)
