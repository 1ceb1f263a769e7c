"""The size of files and of functions, one name for one class, one word for one thing."""

import ast
import re
from collections import defaultdict

from tests.docs.repository import PACKAGES, ROOT, sources, tree

LONGEST_FILE = 400
LONGEST_FUNCTION = 60
#: Words that once had several meanings each. What has an outcome, an exit status or a decision is called so.
RETIRED = re.compile(r"settl|verdict|judge", re.IGNORECASE)


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


def test_retired_words_stay_away() -> None:
    pages = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    found = [
        f"{path}:{number} {line.strip()}"
        for path in [*sources(*PACKAGES, "tests"), *pages]
        if path.name != "test_house.py"
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        if RETIRED.search(line)
    ]
    assert found == []
