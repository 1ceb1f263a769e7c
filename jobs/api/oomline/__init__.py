"""Where does your model run out of memory, how fast is it on the way there, does the text stay sane?

    import oomline

    run = oomline.run("demo", out="runs/demo")
    run.boundaries  # a Polars frame
    run.answer.sentences

Importing it loads neither Ray nor torch.
"""

from jobs.api import events
from jobs.api.fitted import FitResult, fit
from jobs.api.planned import Plan, plan
from jobs.api.recorded import Run
from jobs.api.sweeps import load_spec, open_run, run
from orchestrator.answer import AnswerLine, RunAnswer
from orchestrator.journal.manifest import version_of
from orchestrator.spec import SweepSpec
from orchestrator.spec_error import SpecError
from orchestrator.status import RunStatus
from orchestrator.watch import SweepEvent

__version__ = version_of("oomline")

__all__ = [
    "AnswerLine",
    "FitResult",
    "Plan",
    "Run",
    "RunAnswer",
    "RunStatus",
    "SpecError",
    "SweepEvent",
    "SweepSpec",
    "__version__",
    "events",
    "fit",
    "load_spec",
    "open_run",
    "plan",
    "run",
]
