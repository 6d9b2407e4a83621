"""What every program of jattn shares on the command line: sizes, overrides, and errors in one line with exit code 2."""

import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags
from absl import logging as absl_logging

from jattn.config import ConfigError, nearest


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs an absl program: bad input ends with one clear line on stderr and exit code 2, no traceback."""

    def guarded(argv: Sequence[str]) -> int:
        absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax reports every file at lower levels
        if len(argv) > 1:
            return _fail(f'unexpected argument {argv[1]!r}: flags are written --name=value')
        try:
            return main(argv) or 0
        except (ConfigError, ValueError, OSError) as error:
            if os.environ.get('JATTN_TRACEBACK'):
                raise
            return _fail(' '.join(str(error).split()))

    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        own = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(argv[0])]
        sys.exit(_fail(f'unknown flag --{error.flagname}; {nearest(error.flagname, own)}'))
    except flags.Error as error:
        sys.exit(_fail(' '.join(str(error).split())))


def _fail(message: str) -> int:
    print(f'error: {message}', file=sys.stderr)
    return 2
