"""The size of files and of functions, and one name for one class."""

import ast
from collections import defaultdict

from tests.docs.repository import PACKAGES, ROOT, sources, tree

LONGEST_FILE = 400
LONGEST_FUNCTION = 60


def test_no_file_is_too_long_to_read_at_once() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in sources(*PACKAGES, "tests")}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_function_is_too_long_to_read_at_once() -> None:
    """From `def` to its last line; decorators are not counted."""
    lengths = {
        f"{path}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in sources(*PACKAGES, "tests")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {place: length for place, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_no_class_name_is_defined_twice() -> None:
    places = defaultdict(list)
    for path in sources(*PACKAGES, "tests"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
