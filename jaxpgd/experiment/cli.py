"""The command line: `jaxpgd run` chains all stages, and each stage is a command of its own."""

import io
import os
import signal
import sys
from importlib import metadata
from typing import Any

from jaxpgd.errors import DeviceMemoryError, DivergenceError, EnvironmentFailure, InputError, StorageError, check
from jaxpgd.experiment.arguments import Command
from jaxpgd.experiment.command_line import COMMANDS, read_config, usage

HELP = {"-h", "--help"}


def main(argv: list[str] | None = None) -> None:
    """Entry point. Bad input prints one message and exits with 2."""
    try:
        try:
            _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `head`; what ends a program by SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _main(argv: list[str] | None) -> None:
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show ends nothing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not args or args[0] in (*HELP, "help"):
        print(usage())
    elif args[0] == "--version":
        print(f"jaxpgd {metadata.version('jaxpgd')}")
    else:
        _call(args)


def _call(args: list[str]) -> None:
    """Call a command; errors that are not faults of the program are one line each."""
    left = "the same command does it again"
    try:
        command, rest = find_command(args)
        if command is None:
            return
        left = command.interrupted
        if not HELP.isdisjoint(rest):
            print_help(command)
            return
        rest = _join_hosts(command, rest)
        _ready(command)
        command.call(command.read(rest))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (DivergenceError, StorageError, DeviceMemoryError, EnvironmentFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:
            print(f"terminated; {left}", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print(f"interrupted; {left}", file=sys.stderr)
        raise SystemExit(130) from None


def find_command(args: list[str]) -> tuple[Command | None, list[str]]:
    """The command that `args` begin with, and the rest; None where the help of a group of commands was asked for and printed.

    Raises InputError.
    """
    for words in (2, 1):
        name = " ".join(args[:words])
        if name in COMMANDS:
            return COMMANDS[name], args[words:]
    group = [command for name, command in COMMANDS.items() if name.split()[0] == args[0]]
    if group and not HELP.isdisjoint(args):
        print("\n\n".join(command.help() for command in group))
        return None, []
    if group:
        expected = ", or ".join(command.usage().removeprefix(args[0] + " ").split(" [")[0] for command in group)
        check(False, args[0], " ".join(args[1:]), expected)
    groups = dict.fromkeys(name.split()[0] for name in COMMANDS)
    raise InputError(f"command = {args[0]!r}: expected one of {', '.join(groups)}.")


def print_help(command: Command) -> None:
    """The help of a command; of those that take all settings with every setting."""
    if command.name in ("run", "train-denoiser"):
        from jaxpgd.experiment.settings_help import print_settings

        print_settings(f"jaxpgd {command.usage()}", command.text)
    else:
        print(command.help())


def _join_hosts(command: Command, args: list[str]) -> list[str]:
    """Join the processes that share the work, where `--distributed` is among the arguments; returns the others."""
    if "--distributed" not in args:
        return args
    from jaxpgd.parallel import join_hosts

    able = [name for name, each in COMMANDS.items() if each.distributed]
    check(command.distributed, "--distributed", command.name, f"a command that trains: {', '.join(able)}")
    join_hosts()
    return [word for word in args if word != "--distributed"]


def _ready(command: Command) -> None:
    """Devices that are there, single precision, and compiled programs kept on disk. Raises InputError."""
    from jaxpgd.experiment.precision import single_precision
    from jaxpgd.parallel import require_devices

    require_devices()
    single_precision()
    if not command.name.startswith("data "):
        from jaxpgd.experiment.compilation import keep_compiled_programs

        keep_compiled_programs()


def read_run_arguments(args: list[str], command: str) -> tuple[Any, bool]:
    """The config that arguments of `run` give, and whether it resumes. Raises InputError."""
    found = COMMANDS[command].read(args)
    return read_config(found), found["resume"]


if __name__ == "__main__":
    main()
