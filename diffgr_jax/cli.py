"""Manners of every command: quiet logs, errors in one line, a traceback only with --debug."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import logging
import os
import sys
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

_DEBUG = flags.DEFINE_bool("debug", False, "print a traceback with an error")


def run(main: Callable[[Sequence[str]], int | None], *, actions: Sequence[str] = ()) -> None:
  """Runs an absl main; what a user can mend (bad config, file, flag or mesh) is one line on stderr and exit code 1.

  Args:
    main: gets the arguments that are no flags, the program's name first.
    actions: where there are any, the first argument must be one of them.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  absl_logging.set_verbosity(absl_logging.WARNING)
  absl_logging.use_absl_handler()
  for chatty in ("orbax", "grain", "jax", "tensorflow_datasets"):
    logging.getLogger(chatty).setLevel(logging.ERROR)

  def guarded(argv: Sequence[str]) -> int | None:
    if actions and (len(argv) < 2 or argv[1] not in actions):
      given = f"not {argv[1]!r}" if argv[1:] else "and none is given"
      print(f"error: the first argument is one of {', '.join(actions)}, {given}", file=sys.stderr)
      return 1
    if extra := argv[2:] if actions else argv[1:]:
      print(f"error: unexpected argument {extra[0]!r}: flags begin with --", file=sys.stderr)
      return 1
    try:
      return main(argv)
    except KeyboardInterrupt:
      print("\ninterrupted", file=sys.stderr)
      return 130
    except (ValueError, OSError, RuntimeError) as error:
      if _DEBUG.value:
        raise
      print(f"error: {error}".splitlines()[0], file=sys.stderr)
      return 1

  app.run(guarded, flags_parser=_parse_flags)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
  """On a terminal: what is being done and for how long already, where nobody knows how long it will be."""
  from rich import progress  # only where something is waited for
  from rich.console import Console

  columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.TimeElapsedColumn())
  # A stderr of its own: while a compiler is at work, the other one may be hidden (parallel/aot.py).
  with open(os.dup(2), "w", encoding="utf-8") as stderr:
    how: dict[str, Any] = dict(console=Console(file=stderr), transient=True, disable=not stderr.isatty())
    with progress.Progress(*columns, redirect_stdout=False, redirect_stderr=False, **how) as bar:
      bar.add_task(what, total=None)
      yield


def piped(asked: bool) -> contextlib.AbstractContextManager[object]:
  """With --json: what is said meanwhile goes to stderr, so that stdout holds the JSON alone."""
  return contextlib.redirect_stdout(sys.stderr) if asked else contextlib.nullcontext()


def _parse_flags(argv: Sequence[str]) -> Sequence[str]:
  """Flags and the config file that one of them names; ml_collections puts a traceback above the config's own error."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = lines[-1].removeprefix("ValueError: ")
  except AttributeError as error:  # --config.FIELD=... of a field that there is not; holds a KeyError
    what = "--config has no field " + " ".join(str(error.args[0].args[0]).split())
  print(f"error: {what}", file=sys.stderr)
  sys.exit(1)
