"""The `tidegate` command: finds its subcommands by their entry points, so that no package imports another for it.

A subcommand stands in the group `tidegate.commands` as `name = module:app [extra]`: a Typer app, and the extra that it needs
beyond the core. Only the one that runs is imported; the list of all shows the first sentence of each command function's docstring.
"""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import EntryPoint, EntryPoints, PackageNotFoundError, distribution, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn

import typer

if __name__ == "__main__" and not sys.flags.safe_path:
    # `python -m` puts the current folder first, where a user's own package named server may lie; ours lie beside this file.
    home = str(Path(__file__).resolve().parent)
    sys.path[:1] = [] if home in sys.path[1:] else [home]

from server.errors import TidegateError


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one subcommand and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    commands = entry_points(group="tidegate.commands")
    try:
        if arguments and arguments[0] in commands.names:
            _run(commands[arguments[0]], arguments[1:])
        typer.main.get_command(_overview(commands)).main(arguments, prog_name="tidegate")
    except TidegateError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def export() -> NoReturn:
    """`tidegate-export` is the same as `tidegate export`."""
    main(["export", *sys.argv[1:]])


def _run(command: EntryPoint, arguments: list[str]) -> None:
    try:
        typer.main.get_command(command.load()).main(arguments, prog_name=f"tidegate {command.name}")
    except ModuleNotFoundError:
        missing = _missing_packages(command)
        if not missing or command.dist is None:
            raise
        install = f"pip install '{command.dist.name}[{','.join(command.extras)}]'"
        sys.exit(f"error: `tidegate {command.name}` needs packages that aren't installed ({', '.join(missing)}): {install}")


def _missing_packages(command: EntryPoint) -> list[str]:
    """Which packages of the command's extras aren't installed."""
    requirements = command.dist.requires if command.dist else None
    wanted = (r for r in requirements or () for extra in command.extras if re.search(rf"extra\s*==\s*['\"]{extra}['\"]", r))
    return [name for r in wanted if not _is_installed(name := re.split(r"[^\w.-]", r, maxsplit=1)[0])]


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _overview(commands: EntryPoints) -> typer.Typer:
    """What answers when no subcommand is named: --help, --version, and a wrong name with the nearest right one."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, help="Serve trained models: export, serve, watch, load-test.")

    @app.callback()
    def options(
        version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")] = False,
    ) -> None:
        pass

    for command in sorted(commands, key=lambda command: command.name):
        app.command(command.name, help=_summary(command))(lambda: None)
    return app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tidegate {version('tidegate')}")
        raise typer.Exit


def _summary(command: EntryPoint) -> str:
    """The first sentence that the command's own --help shows, read from its source: importing it would be slow, and might fail."""
    try:
        spec = find_spec(command.module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        return ""
    tree = ast.parse(Path(spec.origin).read_text())
    makers = (f"{command.attr}.command(", f"{command.attr}.callback(")
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    made = (f for f in functions if any(ast.unparse(decorator).startswith(makers) for decorator in f.decorator_list))
    text = ast.get_docstring(next(made, tree)) or ""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].replace("\n", " ")


if __name__ == "__main__":
    main()
