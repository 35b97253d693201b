"""`python -m plant COMMAND`: what `make` calls, and what the one-shot services of `docker-compose.yaml` run."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from aifactory.settings import load_settings
from plant import cluster, display, operate
from plant.errors import PlantError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 not (and for `status`: not everything runs)."""
    parser = argparse.ArgumentParser(prog="plant", description="The embedded plant of the AI factory.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the plant, or continue where it was stopped")
    commands.add_parser("down", help="stop the plant; all state stays")
    commands.add_parser("status", help="show every part: state, process, memory, URL")
    commands.add_parser("demo", help="show the line turning on real data")
    connect = commands.add_parser("connect", help="train in pods of a Kubernetes cluster from now on")
    connect.add_argument("--kubeconfig", type=Path, help="default: KUBECONFIG, else ~/.kube/config")
    connect.add_argument("--context", help="of the kubeconfig; default its current one")
    connect.add_argument("--namespace", default=cluster.NAMESPACE, help="where pods are made (%(default)s)")
    connect.add_argument("--server", help="URL of the cluster's API as Airflow reaches it; default the kubeconfig's")
    commands.add_parser("disconnect", help="train on this machine again")
    commands.add_parser("secrets", help="generate the secrets that are missing")
    commands.add_parser("container-prepare", help="in containers: give every part its share of the secrets")
    commands.add_parser("container-init", help="in containers: bring databases and buckets to this version")
    demo = commands.add_parser("container-demo", help="in containers: the demo, on the plant that runs")
    demo.add_argument("--install-s", type=float, default=0.0, help="how long the images took, s")
    demo.add_argument("--start-s", type=float, default=0.0, help="how long the start took, s")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return _COMMANDS[chosen.command](chosen)
    except PlantError as error:
        Console(stderr=True).print(f"[bold red]The plant:[/] {error}", highlight=False, soft_wrap=True)
        return 1


def _up(_: argparse.Namespace) -> int:
    settings = load_settings()
    with display.progress() as report:
        seconds = operate.up(settings, report)
    console = Console()
    console.print(f"The plant is up after {seconds['install'] + seconds['start']:.0f} s.")
    display.announce(operate.load(settings.home), console)
    return 0


def _down(_: argparse.Namespace) -> int:
    with display.progress() as report:
        operate.down(load_settings(), report)
    return 0


def _status(_: argparse.Namespace) -> int:
    settings = load_settings()
    parts = operate.status(settings)
    display.show_status(settings, parts, operate.memory(settings), Console())
    return 0 if all(part.running for part in parts) else 1


def _demo(_: argparse.Namespace) -> int:
    from plant import demo

    return demo.run(load_settings())


def _connect(chosen: argparse.Namespace) -> int:
    named = chosen.kubeconfig or os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config"
    done = cluster.connect(load_settings(), Path(named), chosen.context, chosen.namespace, chosen.server)
    Console().print(f"Training now runs in pods: {done}.", soft_wrap=True)
    return 0


def _disconnect(_: argparse.Namespace) -> int:
    was = cluster.disconnect(load_settings())
    Console().print("Training runs on this machine again." if was else "No cluster was connected.")
    return 0


def _secrets(_: argparse.Namespace) -> int:
    from plant.secrets import ensure_secrets

    ensure_secrets(load_settings())
    return 0


def _container_prepare(_: argparse.Namespace) -> int:
    from plant import containers

    containers.prepare(load_settings())
    return 0


def _container_init(_: argparse.Namespace) -> int:
    from plant import containers

    containers.init(load_settings())
    return 0


def _container_demo(chosen: argparse.Namespace) -> int:
    from plant import demo

    return demo.run_on(load_settings(), chosen.install_s, chosen.start_s)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "up": _up,
    "down": _down,
    "status": _status,
    "demo": _demo,
    "connect": _connect,
    "disconnect": _disconnect,
    "secrets": _secrets,
    "container-prepare": _container_prepare,
    "container-init": _container_init,
    "container-demo": _container_demo,
}


if __name__ == "__main__":
    sys.exit(main())
