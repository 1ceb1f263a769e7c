"""A process that answers `background.Call`s, one after the other, until its standard input ends."""

import contextlib
import os
import pickle
import sys

from orchestrator.predict.rehearsed import store

#: It makes way for whatever else runs on the driver's machine.
_NICE = 5


def main() -> None:
    os.nice(_NICE)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an architecture's own code prints is no answer
    while True:
        try:
            function, args = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        # What is raised the caller meets too, and knows what to do.
        with store.listening() as heard, contextlib.suppress(Exception):
            function(*args)
        pickle.dump(heard, answers)
        answers.flush()


if __name__ == "__main__":
    main()
