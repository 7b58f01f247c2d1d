"""`umxen demo`: from nothing to a shell in a guest; without a terminal, a boot that is timed and put away."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click

from toolstack.lab import images, initramfs, progress
from toolstack.lab.host import Host, HostError

NAME = "demo"
SMALL_MARKER = "umxen: small guest reached"
_SHUTDOWN_SECONDS = 60


class DemoError(Exception):
    """The demo did not work; the text is the reason."""


@dataclass(frozen=True)
class Plan:
    """What to boot: the words for `xm create`, and the line that says that it is up."""

    what: str
    arguments: tuple[str, ...]
    marker: str
    patience: float


def plan(kernel: Path | None, examples: Path) -> Plan:
    """Debian's kernel, or the given one, with our initramfs; the small guest where Debian's cannot be had.

    Raises: DemoError; ImageError, also where a kernel that was asked for by name cannot be used.
    """
    try:
        chosen = images.kernel(kernel)
        ramdisk = images.initial_ramdisk(chosen)
    except images.ImageError as error:
        if kernel is not None:
            raise
        click.echo(f"No Debian kernel can be had here: {error}.\nBooting the small guest instead.", err=True)
        small = images.small_guest()
        return Plan("the small guest", (*_config(examples, "small.cfg"), f"kernel={small}"), SMALL_MARKER, 30)
    words = (*_config(examples, "debian.cfg"), f"kernel={chosen.path}", f"ramdisk={ramdisk}")
    return Plan(f"Linux {chosen.release}".strip(), words, initramfs.MARKER, 120)


def _config(examples: Path, name: str) -> tuple[str, str]:
    if not (examples / name).is_file():
        raise DemoError(f"{examples / name} is not there: the demo runs from a source tree")
    return str(examples / name), f"name={NAME}"


def interactive(host: Host, chosen: Plan) -> int:
    """Attach this terminal to the guest: a new one, or the demo guest that still runs."""
    running = host.xm("domid", NAME, check=False)
    if running.returncode == 0 and running.stdout.strip().isdecimal():
        words = ["console", NAME]
        click.echo("The demo guest still runs: attaching to its console.")
    else:
        words = ["create", "-c", *chosen.arguments]
    click.echo("Ctrl-] leaves the console; the guest keeps running.\n")
    status = subprocess.run(
        [sys.executable, "-m", "toolstack.xm", *words], env=host.xm_environment(), check=False
    )
    if status.returncode == 0:
        click.echo(f"\n`xm list` shows the guests, `xm console {NAME}` comes back, `umxen down` ends it all.")
    return status.returncode


def unattended(host: Host, chosen: Plan) -> float:
    """Boot, wait for the marker, power off. Returns: seconds from starting xm to the marker.

    Raises: DemoError, HostError.
    """
    began = time.monotonic()
    with progress.step(f"booting {chosen.what}"):
        xm = subprocess.Popen(
            [sys.executable, "-m", "toolstack.xm", "create", "-c", *chosen.arguments],
            env=host.xm_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            _wait_for(xm, chosen, began + chosen.patience)
        finally:
            xm.terminate()
            xm.wait()
    seconds = time.monotonic() - began
    with progress.step("powering the guest off"):
        _power_off(host)
    return seconds


def _wait_for(xm: subprocess.Popen[bytes], chosen: Plan, deadline: float) -> None:
    assert xm.stdout is not None and xm.stderr is not None
    output = b""
    while chosen.marker.encode() not in output:
        if not select.select([xm.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise DemoError(f"{chosen.what} did not come up within {chosen.patience:g} s{_tail(output)}")
        new = os.read(xm.stdout.fileno(), 65536)
        if not new:
            said = xm.stderr.read().decode(errors="replace").strip()
            raise DemoError(f"{chosen.what} did not come up: {said or 'it ended too early'}{_tail(output)}")
        output += new


def _power_off(host: Host) -> None:
    host.xm("shutdown", NAME)
    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    while host.xm("domid", NAME, check=False).stdout.strip().isdecimal():
        if time.monotonic() > deadline:
            raise HostError(f"the guest did not power off within {_SHUTDOWN_SECONDS} s")
        time.sleep(0.1)


def _tail(output: bytes) -> str:
    lines = [line for line in output.decode(errors="replace").splitlines() if line.strip()]
    return "".join(f"\n  console: {line}" for line in lines[-10:])
