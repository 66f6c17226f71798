"""Finding a Ray cluster, or starting Ray on this machine."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from typing import Any

from steppe.benchmark.executors.budget import cores
from steppe.errors import SteppeError

REACH_SECONDS = 5.0
"""How long a cluster may take to answer at its address."""

OBJECT_STORE = 80 * 1024 * 1024
"""Bytes of Ray's shared memory where it is started here: nearly its minimum, as nothing large passes through it."""


def connect(address: str | None) -> tuple[Any, bool]:
    """Connect this process to a cluster, or start a Ray of its own; the module ``ray``, and whether it was started.

    Ray reports to nobody. One that is started here listens on this machine only, as whoever reaches Ray's ports can run
    programs (unless this process had imported ray before: then it is too late to tell it).

    Raises:
        SteppeError: Ray is not installed, the address is none, or nothing answers there.
    """
    if importlib.util.find_spec("ray") is None:
        raise SteppeError("--executor ray needs Ray, which is not installed: pip install 'steppe[ray]'")
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # Ray replaces a loopback address by the machine's own, save where it thinks that there can be no cluster.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=cores(),
                object_store_memory=OBJECT_STORE,
                include_dashboard=False,
                **quiet,
            )
        else:
            _check_reachable(address)
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, SteppeError):
            raise
        raise SteppeError(
            f"no Ray cluster at {address or 'this machine'} ({summary(str(error))}); start one with "
            "`ray start --head` and give its address; the driver has to run on one of its nodes"
        ) from error
    return ray, True


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes."""
    if address == "auto":
        return
    if "://" in address:
        raise SteppeError(
            f"--address takes host:port or auto, got {address!r}: start the sweep on a node of the cluster"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise SteppeError(f"--address takes host:port, such as 10.0.0.1:6379, or auto; got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise SteppeError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): start one there with "
            f"`ray start --head --port={port} --disable-usage-stats`, or give --address auto on one of its nodes"
        ) from error


def summary(message: str) -> str:
    """The sentence of one of Ray's messages that says most."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if "because" in line or "Error" in line]
    return (telling or lines or ["no reason given"])[-1].partition(". ")[0][:200].rstrip(".")
