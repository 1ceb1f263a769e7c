"""`python -m tests.jobs.simulated_command ARGUMENTS`: the command with a simulated device in place of Ray's."""

from jobs.output import prepare_streams

if __name__ == "__main__":
    prepare_streams()
    from jobs import run
    from jobs.cli import main
    from tests.jobs.simulated_run import simulated_run

    run.run_sweep = simulated_run()  # type: ignore[assignment]
    main()
