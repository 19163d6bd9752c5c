"""Event files survive a kill in the middle of a line."""

import json
import subprocess
import sys

from workbench.events import append_lines, cut_torn, event_log, read_lines


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


def test_another_file_under_the_name_is_read_from_its_beginning(tmp_path):
    file = tmp_path / "events.jsonl"
    append_lines(file, [{"a": 1}, {"a": 2}])
    _, offset = read_lines(file)
    file.write_text('{"a": 3}\n5\n')  # and what is no object is no row
    assert read_lines(file, offset)[0] == [{"a": 3}]


def test_what_does_not_fit_leaves_no_torn_line(tmp_path):
    path = tmp_path / "events.jsonl"
    append_lines(path, [{"n": 1}])
    code = (
        "import resource, sys; from pathlib import Path; from workbench.events import append_lines\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\n"
        "append_lines(Path(sys.argv[1]), [{'text': 'x' * 100}])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert path.read_text() == '{"n": 1}\n'


def test_a_torn_end_can_be_cut_off(tmp_path):
    path = tmp_path / "events.jsonl"
    for text, left in (('{"n": 1}\n{"n"', '{"n": 1}\n'), ('{"n"', ""), ("", ""), ('{"n": 1}\n', '{"n": 1}\n')):
        path.write_text(text)
        cut_torn(path)
        assert path.read_text() == left
    cut_torn(tmp_path / "none.jsonl")
