"""How a command of this project speaks and ends: checked params in, one clear line and an honest status out."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import sys
import traceback as tracebacks
from collections.abc import Callable, Iterator

from store.errors import printable

RESUMES = "interrupted; the same command continues the work"
OUR_ROOMS = ("flows", "store", "model", "__main__")


def command(main: Callable[..., None]) -> None:
    """Runs a stage module as a command: `if __name__ == "__main__": command(main)`.

    `main(params)` gets the checked params, `main(params, round)` also the obligatory `--round`, and a `full` is
    whether `--full` was given. Errors end as `clear_errors` says.
    """
    has_round, has_full = (one in inspect.signature(main).parameters for one in ("round", "full"))
    description = (inspect.getdoc(sys.modules[main.__module__]) or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=description)
    if has_round:
        parser.add_argument("--round", required=True, metavar="rK", help="a key of `rounds` in params.yaml, or r0")
    if has_full:
        parser.add_argument("--full", action="store_true", help="keep nothing of an earlier result")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    arguments = parser.parse_args()
    with clear_errors(arguments.traceback, RESUMES):
        from flows.params import load_params  # commands that ask the store know `say`, and should not wait for this

        params = load_params()
        given = {name: getattr(arguments, name) for name in ("round", "full") if hasattr(arguments, name)}
        main(params, **given)


@contextlib.contextmanager
def clear_errors(traceback: bool = False, interrupted: str = "interrupted") -> Iterator[None]:
    """Ends the process with one line on standard error and a status that is not 0, as a command should.

    A user's error is a subclass of ValueError that this project defines: `error: …`, status 1. Anything else is a
    defect and keeps its traceback. Ctrl-C: status 130, never 0, which DVC would take for success;
    `interrupted` is what is said then.
    """
    try:
        yield
    except KeyboardInterrupt:
        say(interrupted)
        raise SystemExit(130) from None
    except ValueError as error:
        if not is_user_error(error):
            raise
        if traceback:
            tracebacks.print_exc()
        say("error: " + "\n".join(map(printable, str(error).splitlines())))  # it may quote a foreign store
        raise SystemExit(1) from None


def is_user_error(error: BaseException) -> bool:
    """Whether an exception is one this project defines for its users, not a defect."""
    return isinstance(error, ValueError) and type(error).__module__.partition(".")[0] in OUR_ROOMS


def say(line: str) -> None:
    """One line to the person at the terminal: standard error, whole, at once."""
    print(line, file=sys.stderr, flush=True)
