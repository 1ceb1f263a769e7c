"""Starts an actor from this project's own modules, whatever lies in the folder that the driver was started in.

Ray puts that folder, and the one of the driver's script, before everything else on the path of its workers. A folder
`workers/` or a file `random.py` in it would be imported in place of ours, or of a library's.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = str(Path(__file__).resolve().parents[2])


def launched(actor_class: type) -> type:
    """Return a class with the methods of `actor_class`, for `ray.remote`.

    Ray pickles it by value, so that nothing is imported in the worker before `__init__` has put the path in order.
    `actor_class` is found by its module and name, which must be at the module's top level.
    """
    module, name = actor_class.__module__, actor_class.__name__
    packages = sorted({module.partition(".")[0], "workers"})
    root = _ROOT
    put_last = [os.getcwd(), os.path.dirname(os.path.realpath(sys.argv[0]))]

    class Launched:
        def __init__(self, *arguments: Any) -> None:
            import importlib
            import os
            import sys

            last = [path for path in sys.path if path in put_last]
            sys.path[:] = [path for path in sys.path if path not in put_last]
            if os.path.isdir(os.path.join(root, "workers")):  # the driver's own code is on this node
                sys.path.insert(0, root)
                for package in packages:
                    importlib.import_module(package)
                sys.path.remove(root)
            sys.path.extend(last)
            self._actor = getattr(importlib.import_module(module), name)(*arguments)

    def forward(method: str) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any) -> Any:
            return getattr(self._actor, method)(*arguments)

        return call

    for method in dir(actor_class):
        if not method.startswith("_"):
            setattr(Launched, method, forward(method))
    Launched.__name__ = Launched.__qualname__ = name  # as Ray shows it
    Launched.__init__.__qualname__ = f"{name}.__init__"
    return Launched
