"""What the programs of jattn share on the command line: flags, and errors in one line with exit code 2.

A flag that several programs have is defined here once; a program names those it reads with `flags.declare_key_flag`.
"""

import os
import sys
from collections.abc import Callable, Sequence

import rich.console
import rich.table
from absl import app, flags
from absl import logging as absl_logging

from jattn.config import ConfigError, nearest

SIZES = ('tiny', 'small', 'paper')
SIZE = flags.DEFINE_enum('size', 'small', SIZES, 'tiny: seconds; small: minutes on a laptop; paper: a GPU or a TPU.')
SET = flags.DEFINE_multi_string('set', [], 'path=value, applied in order, as in model.mixer=rg_lru or data.path=DIR.')
OUT = flags.DEFINE_string('out', None, 'Folder of the results.')
CONFIG = flags.DEFINE_string('config', None, 'The experiment; `python -m experiments.run --list` names them.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: config, metrics, checkpoints. It resumes.')
STEP = flags.DEFINE_integer('step', None, 'Of the checkpoint that is opened; default: the newest.')
PROMPT = flags.DEFINE_multi_string('prompt', [], 'A text for the model; may be given several times.')
PRETRAINED = flags.DEFINE_string('pretrained', None, 'A published model: its name, a .gguf file or a HF folder.')
TEXT = flags.DEFINE_string('text', None, 'A file of text for the model; .gz is unpacked.')
LENGTHS = flags.DEFINE_list('lengths', None, 'Tokens of the sequences, comma-separated; default: as the program says.')
PROCESSES = flags.DEFINE_integer('processes', None, 'How many processes the job has.', lower_bound=1)


def run(main: Callable[[Sequence[str]], int | None], *, takes_rest: bool = False) -> None:
    """Runs an absl program: bad input ends with one clear line on stderr and exit code 2, no traceback.

    Args:
        main: the program.
        takes_rest: whether arguments that are no flags, or stand after --, are its business.
    """

    app.run(lambda argv: call(main, argv, takes_rest), flags_parser=parse)


def call(main: Callable[[Sequence[str]], int | None], argv: Sequence[str], takes_rest: bool = False) -> int:
    """The exit code of a program whose flags are parsed; JATTN_TRACEBACK=1 shows where an error comes from."""
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax reports every file at lower levels
    if len(argv) > 1 and not takes_rest:
        return _fail(f'unexpected argument {argv[1]!r}: flags are written --name=value')
    try:
        return main(argv) or 0
    except (ConfigError, ValueError, OSError) as error:
        if os.environ.get('JATTN_TRACEBACK'):
            raise
        return _fail(' '.join(str(error).split()))


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a wrong one ends the program with one line and exit code 2."""
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        own = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(argv[0])]
        sys.exit(_fail(f'unknown flag --{error.flagname}; {nearest(error.flagname, own)}'))
    except flags.Error as error:
        sys.exit(_fail(' '.join(str(error).split())))


def show_table(table: rich.table.Table) -> None:
    """Prints a table; in a file or a pipe as wide as it needs to be."""
    console = rich.console.Console()
    (console if console.is_terminal else rich.console.Console(width=240)).print(table)


def _fail(message: str) -> int:
    print(f'error: {message}', file=sys.stderr)
    return 2
