"""`umxen stats`: what the hypervisor counts, for people and for scripts.

One counter in a line, `machine.free_frames 1234` or `d3.exits.link 5678`; or a JSON object with --json. Two
readings and their difference are the caller's business: counters only grow while a domain lives.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from toolstack.lab.host import Host


@click.command()
@click.option("--host", "name", metavar="NAME", default=None, help="The host instance.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: machine, and domains by number.")
@click.argument("domids", metavar="[DOMID]...", nargs=-1, type=click.IntRange(0, 0x7FEF))
def stats(name: str | None, as_json: bool, domids: Sequence[int]) -> None:
    """Counters of the hypervisor and of each guest's CPU engine.

    blocks and instructions translated, code_bytes of them and memory_bytes that the engine holds for the
    guest; cache_flushes, tlb_fills, tlb_flushes; frames of code invalidated (page_invalidations) and
    blocks_killed with them; single_steps; and exits from translated code by reason.
    """
    host = Host.named(name)
    machine, domains = host.statistics(), host.engine_statistics()
    if domids:
        missing = [domid for domid in domids if domid not in domains]
        if missing:
            raise ValueError(f"no guest has the number {missing[0]}")
        domains = {domid: domains[domid] for domid in domids}
    if as_json:
        click.echo(json.dumps({"machine": machine, "domains": domains}))
        return
    if not domids:
        _show("machine", machine)
    for domid, counters in domains.items():
        _show(f"d{domid}", counters)


def _show(what: str, counters: dict[str, int]) -> None:
    for counter, value in counters.items():
        click.echo(f"{what}.{counter} {value}")
