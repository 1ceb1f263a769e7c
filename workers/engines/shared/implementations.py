"""From a policy or a decoder to the function that runs it in an engine."""

from pkgutil import resolve_name
from typing import Any

from workers.cell import Engine
from workers.engines.session import ModeUnsupported
from workers.modes import CachePolicy, Decoder


def implementation(of: CachePolicy | Decoder, engine: Engine) -> Any:
    """The object that the value names for this engine. Raises `ModeUnsupported` where it names none."""
    path = of.engines.get(engine)
    if path is None:
        raise ModeUnsupported(f"the {engine} engine has no {of.name}: it runs on {', '.join(of.engines)}")
    return resolve_name(path)
