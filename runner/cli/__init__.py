"""The command `flowrun`. One command a file, imported when it is called."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from runner import __version__
from runner.errors import FlowrunError

COMMANDS = {
    "call": "Send a command, and print the reply.",
    "diff": "Say what a change of the flow files breaks.",
    "dlq": "Dead letters: messages that could not begin a run.",
    "doctor": "Say what is wrong with this set-up, and how to mend it.",
    "emit": "Publish an event.",
    "events": "The event log: what happened, in which order, and by what.",
    "explain": "Say what a diagnostic means, or when a handler retries.",
    "export": "Describe the project for other programs.",
    "graph": "Draw the project as Mermaid, DOT or SVG.",
    "init": "Make a new project.",
    "plan": "Show the broker objects and programs that the flow files declare.",
    "plugins": "List handler plugins, or begin a new one.",
    "query": "Read a projection: its entries, now or as they were.",
    "runs": "The transaction log: what ran, how, and how it ended.",
    "schema": "Print the JSON Schema of flow files, with the project's own names.",
    "start": "Run the project's flows.",
    "status": "Say how the project fares: lag, runs, failures.",
    "validate": "Check flow files without running anything.",
}


class _Lazy(click.Group):
    """A group whose commands are imported only when they are called: `--version` must not wait for them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"runner.cli.{name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from runner.diagnostics import did_you_mean

            hint = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"{error.message.rstrip('.')}.{' ' + hint if hint else ''}", ctx) from None


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="flowrun")
@click.option("--debug", is_flag=True, help="Show the stack of internal errors.")
@click.pass_context
def flowrun(ctx: click.Context, debug: bool) -> None:
    """Run event-driven workflows from YAML."""
    ctx.obj = {"debug": debug}


def main() -> None:
    """Run the command; no user's mistake shows a traceback."""
    sys.exit(guarded(lambda: flowrun.main(standalone_mode=False)))


def guarded(work: Callable[[], Any]) -> int:
    """Do it, say in plain words what goes wrong, and return the exit code."""
    code: object = 0
    try:
        code = work()
    except SystemExit as error:
        code = error.code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("aborted", err=True)
        code = 130
    except FlowrunError as error:
        show_error(error)
        code = error.exit_code
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone: there is no one to tell
        code = 0
    except Exception as error:  # our own fault
        click.echo(f"internal error (FR999), please report it: {type(error).__name__}: {error}", err=True)
        if "--debug" in sys.argv:
            traceback.print_exc()
        else:
            click.echo("flowrun --debug … shows where", err=True)
        code = 2
    return code if isinstance(code, int) else 0


def show_error(error: FlowrunError) -> None:
    """One line on stderr that says what, and one that says what next."""
    from runner.lang.report import printable

    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(printable(error.message), err=True)
    if error.hint:
        click.echo(f"  hint: {printable(error.hint)}", err=True)
