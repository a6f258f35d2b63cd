"""No class and no file is longer than can be read at a sitting."""

from __future__ import annotations

import functools

from tools import size

classes = functools.cache(size.classes)


def too_long(parts: list[size.Part], limit: int) -> list[str]:
    return [f"{part.name}: {part.lines} lines" for part in parts if part.lines > limit]


def test_no_class_is_too_long():
    assert too_long(classes(), size.CLASS_LINES) == []


def test_no_file_is_too_long():
    assert too_long(size.files(), size.FILE_LINES) == []


def test_what_is_counted(tmp_path):
    source = tmp_path / "distree" / "deep" / "made.py"
    source.parent.mkdir(parents=True)
    source.write_text("import a\n\n@a.b\n@a\nclass Outer:\n    class Inner:\n        x = 1\n\n\ndef f(): ...\n")
    assert size.files(tmp_path) == [size.Part(lines=10, name="distree/deep/made.py")]
    assert size.classes(tmp_path) == [
        size.Part(lines=5, name="distree/deep/made.py::Outer"),
        size.Part(lines=2, name="distree/deep/made.py::Inner"),
    ]


def test_the_command_prints_the_largest_and_the_sum(capsys):
    size.main(["--top", "1"])
    out = capsys.readouterr().out
    assert size.files()[0].name in out
    assert classes()[0].name in out
    assert f"{sum(part.lines for part in size.files()):,}  in all" in out
