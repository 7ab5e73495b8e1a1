"""The command line. `main` is what `tilth` runs.

Notable: only typer is imported before a command is known, so help is quick; what a command needs it imports itself.
"""

import sys
import warnings
from typing import NoReturn

import typer

from tilth.cli import audit, forgetting, inspecting, life, running, serving
from tilth.errors import TilthError

app = typer.Typer(
    name="tilth",
    help="Unlabelled data through its whole life in a model: curate, pretrain, adapt, unlearn, evaluate.",
    epilog="Start with: tilth demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and stop.", is_eager=True)) -> None:
    if version:
        from tilth import __version__

        print(f"tilth {__version__}")
        raise typer.Exit


for module in (running, life, audit, forgetting, serving, inspecting):
    module.register(app)


def main() -> NoReturn:
    """Run the command line: exit status 0, 2 for a user's mistake (no traceback), 1 for a defect (with one)."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        app()
    except TilthError as error:
        print(f"tilth: {error}", file=sys.stderr)
        sys.exit(error.status)
    except BrokenPipeError:
        sys.exit(0)
    sys.exit(0)
