"""The `umxen` command: hosts up and down, images, the demo. Guests are xm's business."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import click

from toolstack.lab import demo as the_demo
from toolstack.lab import images, network, progress, rootfs, stats
from toolstack.lab.host import Host, HostError, hosts

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def main() -> None:
    """Entry point: what went wrong is one line on stderr and exit status 1."""
    try:
        umxen(standalone_mode=False, prog_name="umxen")
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\numxen: interrupted", err=True)
        sys.exit(130)
    except (
        HostError, images.ImageError, network.NetworkError, the_demo.DemoError, ValueError, OSError
    ) as error:  # fmt: skip
        click.echo(f"umxen: {error}", err=True)
        sys.exit(1)


host_option = click.option(
    "--host",
    "name",
    metavar="NAME",
    default=None,
    help="The host instance (default: $UMXEN_HOST, else `default`).",
)
cpus_option = click.option(
    "--cpus", type=click.IntRange(1, 64), metavar="N", help="Physical CPUs (default: all)."
)
memory_option = click.option(
    "--memory", metavar="SIZE", help="Machine memory, such as 4G; it is sparse (default: half of the RAM)."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def umxen() -> None:
    """User-mode Xen: hosts for Xen guests, as ordinary processes.

    `umxen up` starts a host: the hypervisor and its daemons. Then `xm create guest.cfg -c` boots a guest on
    it, and `umxen down` ends it all. Several hosts run side by side with --host NAME, or UMXEN_HOST in the
    environment.
    """


@umxen.command()
@host_option
@cpus_option
@memory_option
@click.option("--scheduler", type=click.Choice(["credit", "null"]), default=None, help="Default: credit.")
def up(name: str | None, cpus: int | None, memory: str | None, scheduler: str | None) -> None:
    """Start a host in the background and wait until it serves.

    A host that is up already is left alone. Logs are in $XDG_STATE_HOME/umxen/NAME/logs. If a supervisor was
    killed, `up` takes over the daemons it left, and the guests go on.
    """
    host = Host.named(name)
    if host.is_up():
        click.echo(f"Host {host.paths.name} is up already.")
        return
    _start(host, cpus=cpus, memory=memory, scheduler=scheduler)


@umxen.command()
@host_option
def down(name: str | None) -> None:
    """Stop a host: its daemons, and with them its guests.

    Guests end as if their power were cut; `xm shutdown -a -w` ends them cleanly first. What a killed
    supervisor left behind is cleaned up as well. Stopping a host that is not up is no error.
    """
    host = Host.named(name)
    with progress.step(f"stopping host {host.paths.name}"):
        there = host.stop()
    click.echo(f"Host {host.paths.name} is down." if there else f"Host {host.paths.name} was not up.")


@umxen.command()
@click.option("--host", "name", metavar="NAME", default=None, help="Only this host.")
def status(name: str | None) -> None:
    """Show the hosts, their daemons and their memory.

    The exit status is 0 when a host is up (the one named with --host, or any) and 1 when none is.
    """
    shown = [Host.named(name)] if name else hosts()
    up = [host for host in shown if _show(host)]
    if not shown:
        click.echo("No host is up; `umxen up` starts one.")
    sys.exit(0 if up else 1)


@umxen.command()
@host_option
@cpus_option
@memory_option
@click.option(
    "--kernel",
    envvar="KERNEL",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Boot this PV kernel instead of Debian's [env: KERNEL].",
)
def demo(name: str | None, cpus: int | None, memory: str | None, kernel: Path | None) -> None:
    """Boot a Debian kernel and land in a shell inside the guest.

    Debian's kernel is downloaded once, the initramfs made around busybox, a host started if none is up.
    Ctrl-] leaves the console; guest and host keep running. Without a terminal the guest is booted, the time
    to its first line is shown, it is powered off, and the host stopped if this command started it.
    """
    chosen = the_demo.plan(kernel, EXAMPLES)
    host = Host.named(name)
    started = not host.is_up()
    if started:
        _start(host, cpus=cpus, memory=memory)
    if sys.stdin.isatty() and sys.stdout.isatty():
        sys.exit(the_demo.interactive(host, chosen))
    try:
        seconds = the_demo.unattended(host, chosen)
    finally:
        if started:
            with progress.step(f"stopping host {host.paths.name}"):
                host.stop()
    click.echo(f"{chosen.what} booted in {seconds:.2f} s, from `xm create` to the first line of its init.")


@umxen.group()
def image() -> None:
    """Make guest images and print where they are: a kernel, an initramfs, the small guest."""


@image.command("kernel")
@click.option(
    "--flavour",
    type=click.Choice(list(images.FLAVOURS)),
    default="cloud",
    show_default=True,
    help="Debian's flavour.",
)
@click.option("--update", is_flag=True, help="Ask Debian for a newer one.")
def image_kernel(flavour: str, update: bool) -> None:
    """Print the path of Debian's kernel; it is downloaded when it is not there yet. Needs no root."""
    click.echo(images.kernel(flavour=flavour, update=update).path)


@image.command("initramfs")
@click.option(
    "--kernel",
    envvar="KERNEL",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="For this kernel: its modules are taken from /lib/modules if they are there [env: KERNEL].",
)
@click.option("--flavour", type=click.Choice(list(images.FLAVOURS)), default="cloud", show_default=True)
@click.option("--root", is_flag=True, help="For a guest with a root disk (root=/dev/xvda).")
@click.option(
    "--run",
    type=click.File("r"),
    metavar="SCRIPT",
    help="Run this shell script and power off, instead of a shell on the console.",
)
@click.option(
    "--add", "added", multiple=True, metavar="FILE[:PATH]", help="Put a file in, at PATH (default: /NAME)."
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Where (default: the cache).",
)
def image_initramfs(
    kernel: Path | None,
    flavour: str,
    root: bool,
    run: TextIO | None,
    added: tuple[str, ...],
    output: Path | None,
) -> None:
    """Make an initramfs of busybox with the Xen drivers of the kernel, and print its path.

    A command can also come from the kernel's command line: umxen.run= and shell text in base64.
    """
    files = {}
    for item in added:
        source, _, target = item.partition(":")
        files[target or Path(source).name] = Path(source).read_bytes()
    text = run.read() if run is not None else None
    chosen = images.kernel(kernel, flavour)
    click.echo(images.initial_ramdisk(chosen, root=root, run=text, files=files, output=output))


@image.command("debian")
@click.argument("disk", type=click.Path(path_type=Path, dir_okay=False), metavar="DISK")
@click.option("--release", default=rootfs.RELEASE, show_default=True, help="Debian's release, by its name.")
@click.option("--include", "packages", default="", metavar="PACKAGE,...", help="More packages.")
@click.option(
    "--size",
    type=click.IntRange(256, rootfs.MAX_SIZE_MIB),
    default=rootfs.SIZE_MIB,
    show_default=True,
    metavar="MIB",
    help="Of the disk, which is sparse.",
)
def image_debian(disk: Path, release: str, packages: str, size: int) -> None:
    """Write DISK: a raw disk image with a Debian system that starts systemd and asks for a login (root).

    It boots with a kernel and an initramfs from outside: see `umxen image initramfs --root` and
    examples/debian-disk.cfg. Made with mmdebstrap, without root, and kept in the cache for the next time.
    """
    included = [word for word in packages.replace(",", " ").split() if word]
    click.echo(rootfs.debian_disk(disk, release=release, include=included, size_mib=size))


@image.command("small")
def image_small() -> None:
    """Build the small guest of domu/guests/small and print its path."""
    click.echo(images.small_guest())


def _start(
    host: Host, *, cpus: int | None = None, memory: str | None = None, scheduler: str | None = None
) -> None:
    began = time.monotonic()
    with progress.step(f"starting host {host.paths.name}") as step:
        host.start(cpus=cpus, memory=memory, scheduler=scheduler, report=_detail(step))
    size = ""
    try:
        size = f", {host.statistics()['total_frames'] >> 8} MiB"
    except (OSError, HostError, KeyError):
        pass  # it is up; its size is only told for comfort
    click.echo(f"Host {host.paths.name} is up{size} ({time.monotonic() - began:.1f} s).")


def _detail(step: progress.Step) -> Callable[[str], None]:
    def show(line: str) -> None:
        step.detail = line

    return show


def _show(host: Host) -> bool:
    """Print what is known of a host; whether it is up."""
    state = host.state()
    if state is None:
        click.echo(f"Host {host.paths.name} is not up.")
        return False
    up = host.is_up()
    words = f"up {_duration(time.time() - state.supervisor.since)}" if up else "without a supervisor"
    try:
        counts = host.statistics()
        free, total = counts["free_frames"] >> 8, counts["total_frames"] >> 8
        words += f", guests: {max(0, counts['nr_domains'] - 1)}, {free} of {total} MiB free"
    except (OSError, HostError, KeyError):
        words += ", the hypervisor does not answer"
    click.echo(f"Host {host.paths.name}: {words}")
    if not up:
        click.echo("  `umxen up` takes it over, `umxen down` stops what is left.")
    click.echo(f"  {'daemon':<12} {'pid':>7} {'uptime':>10} {'restarts':>8}")
    for daemon in state.daemons:
        uptime = _duration(time.time() - daemon.since) if daemon.alive() else "gone"
        click.echo(f"  {daemon.name:<12} {daemon.pid:>7} {uptime:>10} {daemon.restarts:>8}")
    return up


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


umxen.add_command(network.network)
umxen.add_command(network.capture)
umxen.add_command(stats.stats)


if __name__ == "__main__":
    main()
