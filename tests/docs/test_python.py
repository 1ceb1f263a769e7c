"""What docs/python.md and docs/architecture.md say of the code can be imported, and is complete."""

import ast
import importlib
import inspect

import oomline
from tests.docs.pages import fences, names, pages, rows, spans, text
from tests.docs.repository import ROOT


def test_every_documented_call_exists_with_its_arguments() -> None:
    calls = names("docs/python.md", "Functions", "call")
    for call in calls:
        documented = ast.parse(call).body[0].value  # type: ignore[attr-defined]
        function = getattr(oomline, documented.func.id)
        parameters = inspect.signature(function).parameters
        told = [arg.id for arg in documented.args] + [keyword.arg for keyword in documented.keywords]
        assert told == list(parameters), call
        for keyword in documented.keywords:
            assert ast.literal_eval(keyword.value) == parameters[keyword.arg].default, call
    there = {name for name in oomline.__all__ if inspect.isfunction(getattr(oomline, name))}
    assert {call.partition("(")[0] for call in calls} == there


def test_every_attribute_of_a_run_is_documented() -> None:
    documented = {name.partition("(")[0] for name in names("docs/python.md", "`Run`", "attribute")}
    there = {name for name in dir(oomline.Run("x")) if not name.startswith("_")} - {"folder"}
    assert documented == there


def test_every_name_that_a_python_example_imports_exists() -> None:
    for page in pages():
        for fence in fences(page, "python"):
            for node in ast.walk(ast.parse(fence.text)):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(node.module or "")
                    assert all(hasattr(module, alias.name) for alias in node.names), (page, node.module)
                elif isinstance(node, ast.Import):
                    assert all(importlib.import_module(alias.name) for alias in node.names)


def test_every_room_is_on_the_map() -> None:
    on_the_map = set(names("docs/architecture.md", "The rooms", "room"))
    packages = {
        f"{path.parent.relative_to(ROOT)}/"
        for package in ("orchestrator", "workers")
        for path in (ROOT / package).glob("*/__init__.py")
    }
    modules = {
        str(path.relative_to(ROOT))
        for package in ("orchestrator", "workers")
        for path in (ROOT / package).glob("[a-z]*.py")
    }
    assert packages <= on_the_map
    assert modules <= set(spans(text("docs/architecture.md")))
    assert [room for room in on_the_map if not (ROOT / room).exists()] == []


def test_every_value_that_crosses_rooms_is_where_the_map_says() -> None:
    for row in rows("docs/architecture.md", "The values that cross rooms", "value"):
        name, place = row["value"].strip("`"), row["defined in"].strip("`")
        module = importlib.import_module(place.removesuffix(".py").rstrip("/").replace("/", "."))
        assert hasattr(module, name), row
