"""`python -m plant up|down|status|demo|serve`: what `make` and the container call."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading

from rich.console import Console

from aifactory.settings import load_settings
from plant import display, operate
from plant.errors import PlantError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 not (and for `status`: not everything runs)."""
    parser = argparse.ArgumentParser(prog="plant", description="The embedded plant of the AI factory.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the plant, or continue where it was stopped")
    commands.add_parser("down", help="stop the plant; all state stays")
    commands.add_parser("status", help="show every part: state, process, memory, URL")
    commands.add_parser("demo", help="show the line turning on real data")
    commands.add_parser("serve", help="start the plant, stay, and stop it in order when told to end; for containers")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return _COMMANDS[chosen.command]()
    except PlantError as error:
        Console(stderr=True).print(f"[bold red]The plant:[/] {error}", highlight=False, soft_wrap=True)
        return 1


def _up() -> int:
    settings = load_settings()
    with display.progress() as report:
        seconds = operate.up(settings, report)
    console = Console()
    console.print(f"The plant is up after {seconds['install'] + seconds['start']:.0f} s.")
    display.announce(operate.load(settings.home), console)
    return 0


def _down() -> int:
    with display.progress() as report:
        operate.down(load_settings(), report)
    return 0


def _status() -> int:
    settings = load_settings()
    parts = operate.status(settings)
    display.show_status(settings, parts, operate.memory(settings), Console())
    return 0 if all(part.running for part in parts) else 1


def _demo() -> int:
    from plant import demo

    return demo.run(load_settings())


def _serve() -> int:
    settings, ended = load_settings(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with display.progress() as report:
        operate.up(settings, report)
    display.announce(operate.load(settings.home), Console())
    ended.wait()
    return _down()


_COMMANDS = {"up": _up, "down": _down, "status": _status, "demo": _demo, "serve": _serve}


if __name__ == "__main__":
    sys.exit(main())
