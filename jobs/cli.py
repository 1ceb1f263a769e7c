"""`oomline`: plan, fit, run, status, report, compare, logits, models, init, schema, export, doctor. `python -m jobs` is the same.

Exit status: 0 nothing is left and nothing failed; 1 something is left, and the same command does it; 2 the sweep file or the
arguments are wrong; 3 nothing is left, but a cell is quarantined, or a model could not be loaded for any cell.
"""

import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.output import announce, complain, flush_or_discard, prepare_streams
from orchestrator.journal.errors import REFUSALS
from orchestrator.spec_error import SpecError
from workers.modes import BrokenEntryPoint
from workers.outcome import Outcome

# Each command imports what it needs: a person who asks for help waits for no library.
if TYPE_CHECKING:
    from orchestrator.spec import SweepSpec

app = typer.Typer(
    name="oomline",
    help="Where does your model run out of memory, how fast is it on the way there, does the text stay sane?",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

SpecPath = Annotated[
    Path,
    typer.Argument(metavar="SPEC", help="The sweep file (YAML), or the name of one that comes along: demo."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key, e.g. --set lengths=[500,1000]. Repeatable."
    ),
]
RunFolderArg = Annotated[str, typer.Argument(metavar="DIR", help="A run folder: a path, s3:// or gs://.")]
Together = Annotated[
    list[int] | None,
    typer.Option(min=1, help="Cards that hold the model together. Repeatable. Default: 1."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


def _say_version(asked: bool) -> None:
    if asked:
        from orchestrator.journal.manifest import version_of

        typer.echo(f"oomline {version_of('oomline')}")
        raise typer.Exit


@app.callback()
def oomline(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Where does your model run out of memory, how fast is it on the way there, does the text stay sane?"""


@app.command()
def plan(
    spec: SpecPath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    device: Annotated[
        str | None,
        typer.Option(
            help="Predict for this device: a name, or name:size such as H100:80GiB. Default: this machine's kind."
        ),
    ] = None,
) -> None:
    """Dry run: cells, predicted peak memory, boundary and device time. Touches no device."""
    from jobs.api.planned import plan as forecast
    from jobs.plan_view import print_plan

    sweep = _read(spec, overrides)
    found = forecast(sweep, device)
    _tell_skipped_rows(sweep)
    if as_json:
        typer.echo(found.to_json())
    else:
        print_plan(sweep, found.forecast)


@app.command()
def fit(
    model: Annotated[str, typer.Argument(help="As in a sweep file, or a config.json.")],
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Of the whole text. Default: how far it goes.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    mode: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: baseline, streaming.")] = None,
    card: Annotated[
        list[str] | None, typer.Option(help="A card's name, or a size such as 24GiB. Repeatable.")
    ] = None,
    kv_dtype: Annotated[
        list[str] | None,
        typer.Option(help="auto: keys and values in the model's dtype; or fp8, int8, int4. Repeatable."),
    ] = None,
    draft: Annotated[str | None, typer.Option(help="For the +spec modes.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights.")] = "bfloat16",
    engine: Annotated[str, typer.Option(help="eager or graph.")] = "eager",
    allocator: Annotated[
        str, typer.Option(help="default, expandable, or what PYTORCH_ALLOC_CONF may say.")
    ] = "default",
    prefill_chunk: Annotated[
        int, typer.Option(min=0, help="Tokens of the prompt per pass; 0: all in one pass.")
    ] = 2048,
    devices: Together = None,
    out: Annotated[
        Path | None, typer.Option(help="Draw the longest text by number of sequences: FILE.html or FILE.svg.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How far a model goes on a card, or whether N tokens fit: from its config, without a GPU, without weights."""
    from jobs.api.fitted import MODES
    from jobs.api.fitted import fit as find_fit
    from jobs.fit_view import print_fit

    if out is not None and out.suffix not in (".html", ".svg"):
        raise SpecError(f"--out {out}: a file that ends in .html or .svg")
    found = find_fit(
        model,
        tokens,
        cards=card or [],
        modes=mode or MODES,
        batch=batch,
        draft=draft,
        dtype=dtype,
        engine=engine,
        allocator=allocator,
        prefill_chunk=prefill_chunk or None,
        kv_dtypes=kv_dtype or ["auto"],
        devices=devices or [1],
        frontier=out is not None,
    )
    if out is not None:
        from orchestrator.fit.picture import write_frontier

        write_frontier(found.answers, out)
    if as_json:
        typer.echo(found.to_json())
    else:
        print_fit(found.answers)


@app.command()
def run(
    spec: SpecPath,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Run folder; default runs/NAME. A path, s3:// or gs://.")
    ] = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray address; default: RAY_ADDRESS, the job's cluster, else this machine alone."),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(min=1, help="CPU slots where there is no GPU; default: one for every two cores."),
    ] = None,
    retry: Annotated[
        str | None,
        typer.Option(
            metavar="OUTCOME,...", help="Run cells again that ended so, e.g. load_error,quarantined."
        ),
    ] = None,
    extend: Annotated[
        bool,
        typer.Option(
            "--extend", help="The sweep file asks for more than the run folder has: add what is new."
        ),
    ] = False,
) -> None:
    """Run the sweep; the same command again resumes it."""
    outcomes = _outcomes(retry)
    from orchestrator.plan import expand

    sweep = _read(spec, overrides)
    from jobs.finished import answered_before

    folder = out or f"runs/{sweep.name}"
    if not outcomes and not extend and answered_before(sweep, folder, address):
        return
    # The first word, before anything that takes seconds is imported.
    cells = len(expand(sweep))
    announce(
        f"{sweep.name}: {cells:,} cell{'' if cells == 1 else 's'}; checking the models, then looking for Ray"
    )
    _check(sweep)
    from jobs.run import run_command

    raise typer.Exit(
        run_command(sweep, folder, address=address, cpu_slots=slots, retry=outcomes, extend=extend)
    )


@app.command()
def status(folder: RunFolderArg, as_json: AsJson = False) -> None:
    """Where a run stands, from its folder alone."""
    from jobs.status_view import print_status
    from orchestrator.status import read_status

    found = read_status(folder)
    if as_json:
        typer.echo(found.to_json())
    else:
        print_status(found)


@app.command()
def report(folder: RunFolderArg, as_json: AsJson = False) -> None:
    """Render tables and report again, from the journal alone."""
    from jobs.api.sweeps import open_run
    from orchestrator.report import render

    where = render(folder)
    typer.echo(open_run(folder).to_json() if as_json else where)


@app.command()
def compare(
    folders: Annotated[list[str], typer.Argument(metavar="DIR DIR ...", help="Two or more run folders.")],
    as_json: AsJson = False,
    fail_on: Annotated[
        str | None,
        typer.Option(
            metavar="QUANTITY:PERCENT%,...",
            help="Exit status 1 where a later run is worse, e.g. boundary:2%,speed:5%,memory:1%.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write compare.html and pictures there.")
    ] = None,
) -> None:
    """Runs side by side: boundaries, speed, memory, and which differences exceed the noise."""
    from jobs.compare_view import compare_command

    if len(folders) < 2:
        raise SpecError(f"compare {folders[0]}: give at least two run folders")
    raise typer.Exit(compare_command(folders, as_json=as_json, fail_on=fail_on, out=out))


@app.command()
def export(
    folder: RunFolderArg,
    out: Annotated[Path, typer.Option(metavar="DIR", help="An empty folder, or one to make.")],
    form: Annotated[str, typer.Option("--format", help="csv, jsonl or mlflow.")] = "csv",
) -> None:
    """The tables as CSV or JSON lines, or the run in the layout of an MLflow file store."""
    from jobs.export import export_run

    for path in export_run(folder, out, form):
        typer.echo(path)


@app.command()
def logits(
    model: Annotated[str, typer.Option(help="Hub id, local folder, file.gguf, pocket, random:NAME.")],
    mode: Annotated[str, typer.Option(help="One that reads a given text: baseline, streaming, ...")],
    tokens: Annotated[Path, typer.Option(metavar="IDS.json", help="A JSON list of token ids.")],
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors")],
    engine: Annotated[str, typer.Option(help="eager or graph.")] = "eager",
    sinks: Annotated[int, typer.Option(min=0)] = 4,
    window: Annotated[int, typer.Option(min=1)] = 512,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16, or float64 (eager on a CPU).")
    ] = "float32",
) -> None:
    """Teacher-forced logits of one mode and engine at every position, to hold against an outside reference."""
    from workers.logits import LogitsRequest, write_logits

    request = LogitsRequest(model=model, mode=mode, engine=engine, sinks=sinks, window=window, dtype=dtype)
    try:
        shape = write_logits(request, tokens, out)
    except ValueError as error:
        raise SpecError(str(error)) from None
    typer.echo(f"{out}: logits {list(shape)} float32")


@app.command()
def models(as_json: AsJson = False) -> None:
    """Which model families of transformers load, run, are counted exactly, stream, and have the graph engine."""
    from jobs.models_view import models_as_json, print_models
    from workers.models.coverage import read_coverage

    coverage = read_coverage()
    if as_json:
        typer.echo(json.dumps(models_as_json(coverage), indent=2))
    else:
        print_models(coverage)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep file to write.")] = Path(
        "sweep.yaml"
    ),
) -> None:
    """Write a sweep file with every key in it, explained, to begin with."""
    from jobs.sweep_files import write_template

    write_template(file)
    typer.echo(f"{file}: change it, then `oomline plan {file}`")


@app.command()
def schema(
    of_run: Annotated[bool, typer.Option("--run", help="Of a run as JSON, `oomline report --json`.")] = False,
) -> None:
    """The JSON Schema of sweep files, for editors; or of a run as JSON."""
    if of_run:
        from jobs.api.run_json import run_schema as schema_of
    else:
        from jobs.sweep_files import schema as schema_of

    typer.echo(json.dumps(schema_of(), indent=2))


@app.command()
def doctor(
    address: Annotated[str | None, typer.Option(help="Ray address of the cluster to look at.")] = None,
    as_json: AsJson = False,
) -> None:
    """What this machine or cluster offers: GPUs, driver, NVML, foreign processes, versions."""
    from jobs.doctor import examine

    typer.echo(examine(address, as_json=as_json))


def _outcomes(retry: str | None) -> frozenset[Outcome]:
    names = [] if retry is None else [name.strip() for name in retry.split(",")]
    known = [outcome.value for outcome in Outcome]
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1, 0.0)
            raise SpecError(
                f"--retry {retry}: unknown outcome {name!r}; the nearest is {nearest[0]!r} (of {', '.join(known)})"
            )
    return frozenset(map(Outcome, names))


def _read(path: Path, overrides: list[str] | None) -> "SweepSpec":
    from jobs.api.sweeps import load_spec

    return load_spec(path, overrides or ())


def _check(sweep: "SweepSpec") -> None:
    from orchestrator.preflight import refuse_bad_input

    refuse_bad_input(sweep)
    _tell_skipped_rows(sweep)


def _tell_skipped_rows(sweep: "SweepSpec") -> None:
    from orchestrator.preflight import skipped_rows

    if skipped := skipped_rows(sweep):
        complain(f"note: corpus {sweep.corpus}: {skipped}")


def main() -> None:
    """Entry point: wrong input, and a run folder that cannot be used, are one line on stderr and exit status 2. So is
    what is said and cannot be printed, with exit status 1.
    """
    prepare_streams()
    try:
        app()
    except (SpecError, BrokenEntryPoint, *REFUSALS) as error:
        complain(str(error))
        sys.exit(2)
    except OSError:
        if (lost := flush_or_discard()) is None:
            raise
        complain(f"its output cannot be written: {lost}")
        sys.exit(1)
    finally:
        flush_or_discard()
