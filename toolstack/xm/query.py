"""The commands that only look: list, vcpu-list, info, dmesg, log, domid, domname, domstate, uptime."""

from __future__ import annotations

import sys
import time

from toolstack import sxp
from toolstack.xm import render
from toolstack.xm.errors import UsageError
from toolstack.xm.options import Options, check_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from toolstack.xm.session import Session

LIST = Options("l", {"long": "l", "label": "label", "state=": "state", "pool=": "pool"})
INFO = Options("cn", {"config": "c", "numa": "n"})
DMESG = Options("c", {"clear": "c"})
UPTIME = Options("s", {"short": "s"})


def list_domains(session: Session, args: list[str]) -> None:
    options, names = LIST.parse(args)
    for choice in ("state", "pool"):
        if choice in options and names and options[choice] != "all":
            raise UsageError(f"You may specify either a {choice} or a particular VM, but not both")
    state = options.get("state", "all").lower()
    if state != "all" and state not in render.STATES:
        raise UsageError(f"there is no state '{state}' (all, {', '.join(render.STATES)})")
    if "label" in options:
        raise UsageError("security labels are not built yet")
    full = "l" in options
    domains = (
        [session.call("xend.domain", name, full) for name in names] if names else session.domains(state, full)
    )
    if "pool" in options:
        domains = [
            domain for domain in domains if sxp.child_value(domain, "pool_name", "") == options["pool"]
        ]
    session.print((sxp.pretty(domain) for domain in domains) if full else render.brief_list(domains))


def vcpu_list(session: Session, args: list[str]) -> None:
    _, names = Options().parse(args)
    names = names or session.call("xend.domains_with_state", False, "all", False)
    infos = [session.call("xend.domain.getVCPUInfo", name) for name in names]
    facts = {pair[0]: pair[1] for pair in session.call("xend.node.info", 0) if len(pair) > 1}
    session.print(render.vcpu_list(infos, int(facts["nr_cpus"])))


def info(session: Session, args: list[str]) -> None:
    check_count(args, "info", 0, 1)
    options, _ = INFO.parse(args)
    if "c" in options:
        raise UsageError("the configuration of xend cannot be shown yet")
    session.print(render.node_info(session.call("xend.node.info", int("n" in options))))


def dmesg(session: Session, args: list[str]) -> None:
    check_count(args, "dmesg", 0, 1)
    options, rest = DMESG.parse(args)
    if rest:
        raise UsageError("No parameter required")
    sys.stdout.write(session.call("xend.node.dmesg.clear" if "c" in options else "xend.node.dmesg.info"))


def log(session: Session, args: list[str]) -> None:
    check_count(args, "log", 0)
    session.print(session.call("xend.node.log"))


def domid(session: Session, args: list[str]) -> None:
    check_count(args, "domid", 1)
    session.print(str(sxp.child_value(session.domain(args[0]), "domid")))


def domname(session: Session, args: list[str]) -> None:
    check_count(args, "domname", 1)
    session.print(str(sxp.child_value(session.domain(args[0]), "name")))


def domstate(session: Session, args: list[str]) -> None:
    check_count(args, "domstate", 1)
    domain = session.domain(args[0])
    paused = "p" in str(sxp.child_value(domain, "state", ""))
    by_admin = paused and bool(session.call("xend.domain.getpauseflag", args[0]))
    session.print(render.domain_state(domain, by_admin))


def uptime(session: Session, args: list[str]) -> None:
    options, names = UPTIME.parse(args)
    domains = [session.domain(name) for name in names] if names else session.domains()
    with open("/proc/uptime") as file:
        host = float(file.read().split()[0])
    now = time.time()
    if "s" not in options:
        session.print(render.UPTIME_HEADER)
    for domain in domains:
        seconds = render.seconds_up(domain, now, host)
        if "s" in options:
            session.print(
                render.uptime_short(domain, seconds, time.strftime("%H:%M:%S", time.localtime(now)))
            )
        else:
            session.print(render.uptime(domain, seconds))
