"""Finds the cause in the text of an error: the last line of a traceback, which a short line of a log would cut off."""

import re

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MODULES = re.compile(r"^(?:\w+\.)+(?=\w+(?::|$))")
_MARKS = re.compile(r"^\s*[~^]+\s*$")  # below a line of code
_FRAME = 'File "'


def cause(text: str) -> str:
    """Return the error that was raised, in one line, without colour codes and the names of modules. A text without a
    traceback is returned whole."""
    lines = _COLOURS.sub("", text).splitlines()
    frames = [index for index, line in enumerate(lines) if line.lstrip().startswith(_FRAME)]
    if not frames:
        return _one_line(lines)
    last = frames[-1]
    depth = _indent(lines[last])
    raised = next((i for i in range(last + 1, len(lines)) if lines[i] and _indent(lines[i]) < depth), None)
    if raised is None:
        return _one_line(lines)
    return _MODULES.sub("", _one_line(lines[raised:]))


def cause_first(text: str) -> str:
    """Return the cause, followed by the whole text where that says more. One line, without colour codes."""
    first, whole = cause(text), _one_line(_COLOURS.sub("", text).splitlines())
    return whole if first == whole else f"{first}; in full: {whole}"


def _one_line(lines: list[str]) -> str:
    return " ".join(" ".join(line for line in lines if not _MARKS.match(line)).split())


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
