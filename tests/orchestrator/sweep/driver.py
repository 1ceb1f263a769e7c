"""A driver to be killed: `python -m tests.orchestrator.sweep.driver OUT SPEC.json [ADDRESS]`.

Has imported everything when it waits for its input to end, and begins then.
"""

import json
import sys
from pathlib import Path

from orchestrator.journal.folder import open_run
from orchestrator.spec import parse_spec
from orchestrator.sweep.run import run_sweep
from orchestrator.watch.plain import PlainWatcher


def main(out: str, spec_file: str, address: str | None = None) -> int:
    sys.stdin.read()
    spec = parse_spec(json.loads(Path(spec_file).read_text()))
    with open_run(out, spec) as folder:
        summary = run_sweep(spec, folder, PlainWatcher(sys.stdout), address=address, cpu_slots=1)
    print(summary.sentence(), flush=True)
    return summary.exit_status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
