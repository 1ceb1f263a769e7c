"""Sweep files by name, a first one to write one's own from, and what an editor needs to check them."""

import difflib
from pathlib import Path
from typing import Any

from orchestrator.spec import DTYPE_NAMES, SweepSpec
from orchestrator.spec_error import SpecError
from workers.modes import MODES, WORKLOADS
from workers.retrieval.tasks import TASKS

_HERE = Path(__file__).parent
_SWEEPS, _TEMPLATE = _HERE / "sweeps", _HERE / "template.yaml"


def built_in() -> list[str]:
    """Return the names of the sweeps that come with the package."""
    return sorted(path.stem for path in _SWEEPS.glob("*.yaml"))


def find(spec: Path) -> Path:
    """Return the sweep file that `spec` names: a file, else a sweep of the package. Raises `SpecError`."""
    if spec.exists() or spec.suffix in (".yaml", ".yml") or len(spec.parts) != 1:
        return spec
    if spec.name in built_in():
        return _SWEEPS / f"{spec.name}.yaml"
    near = difflib.get_close_matches(spec.name, built_in(), 1, 0.0)[0]
    raise SpecError(
        f"{spec}: no such file, and no sweep of that name; the nearest is {near!r} (of {', '.join(built_in())})"
    )


def write_template(path: Path) -> None:
    """Write a sweep file with every key in it, explained. Raises `SpecError` where it cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(_TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise SpecError(f"{path} is there already: give another name") from None
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror or error}: give another name") from None


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a sweep file as it may be written: single values for lists, names for models."""
    found = SweepSpec.model_json_schema()
    definitions, properties = found["$defs"], found["properties"]
    definitions["ModelSpec"]["properties"]["dtype"] = {"enum": sorted(DTYPE_NAMES), "default": "bfloat16"}
    properties["models"]["items"] = {"anyOf": [{"type": "string"}, properties["models"]["items"]]}
    properties["modes"]["items"] = {"enum": list(MODES)}
    properties["workload"] = {"enum": list(WORKLOADS), "default": properties["workload"]["default"]}
    definitions["RetrieveSpec"]["properties"]["tasks"]["items"] = {"enum": list(TASKS)}
    for keys in (properties, *(definitions[name]["properties"] for name in ("BoundarySpec", "RetrieveSpec"))):
        for name, value in keys.items():
            if value.get("type") == "array":
                keys[name] = {
                    "anyOf": [value, value["items"]],
                    **({"default": value["default"]} if "default" in value else {}),
                }
    properties["devices"]["anyOf"].append({"type": "string"})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "oomline sweep file"}
