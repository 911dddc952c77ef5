"""The `hyperfactory` command: parse, run, and turn every expected error into a sentence and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from factory_cli.app import app
from factory_cli.failures import Exit, defect, explain
from factory_cli.output import Output

DEBUG_VARIABLE = "HYPERFACTORY_DEBUG"
_FLAGS = ("--json",)
_VALUED = ("--home", "--client")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    # grpc's own warnings go to stderr below this level; ours say the same in a sentence.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    args = hoist(sys.argv[1:] if argv is None else argv)
    try:
        app(args=args, prog_name="hyperfactory")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else Exit.FAILED
    except BaseException as error:
        failure = explain(error)
        if failure is None:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            failure = defect(error)
        if failure.message:
            failure.show(Output(as_json="--json" in args))
        return failure.code
    return Exit.OK


def hoist(args: Sequence[str]) -> list[str]:
    """Move the global options to the front, so that they may stand anywhere before a `--`."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            return [*front, *rest, word, *words]
        if word in _FLAGS or word.startswith(tuple(f"{name}=" for name in _VALUED)):
            front.append(word)
        elif word in _VALUED:
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            rest.append(word)
    return front + rest


if __name__ == "__main__":
    sys.exit(main())
