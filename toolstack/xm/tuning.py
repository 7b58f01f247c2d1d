"""The commands that change a running domain: memory, scheduling, affinity, sysrq, the hypervisor's debug
keys.
"""

from __future__ import annotations

from toolstack import sxp
from toolstack.xm import render
from toolstack.xm.client import Fault
from toolstack.xm.errors import Failure, UsageError
from toolstack.xm.options import Options, check_count, integer, mebibytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from toolstack.xm.session import Session

CREDIT = Options("d:w:c:", {"domain=": "d", "weight=": "w", "cap=": "c"})


def mem_set(session: Session, args: list[str]) -> None:
    check_count(args, "mem-set", 2)
    session.call("xend.domain.setMemoryTarget", args[0], mebibytes(args[1]))


def mem_max(session: Session, args: list[str]) -> None:
    check_count(args, "mem-max", 2)
    session.call("xend.domain.maxmem_set", args[0], mebibytes(args[1]))


def sysrq(session: Session, args: list[str]) -> None:
    check_count(args, "sysrq", 2)
    session.call("xend.domain.send_sysrq", args[0], args[1])


def debug_keys(session: Session, args: list[str]) -> None:
    check_count(args, "debug-keys", 1)
    session.call("xend.node.send_debug_keys", args[0])


def cpu_set(text: str) -> list[int]:
    """The CPUs of `0-3,^2,7`; later words win. Raises: UsageError."""
    cpus: set[int] = set()
    for word in filter(None, text.split(",")):
        low, dash, high = word.lstrip("^").partition("-")
        first = integer(low, "a CPU")
        last = integer(high, "a CPU") if dash else first
        if not 0 <= first <= last <= 4095:
            raise UsageError(f"'{word}' is no range of CPUs")
        chosen = set(range(first, last + 1))
        cpus = cpus - chosen if word.startswith("^") else cpus | chosen
    return sorted(cpus)


def vcpu_pin(session: Session, args: list[str]) -> None:
    check_count(args, "vcpu-pin", 3)
    name, vcpu, cpus = args
    if vcpu.lower() != "all":
        integer(vcpu, "a VCPU")
    chosen = cpu_set("0-63" if cpus == "all" else cpus)
    if not chosen:
        raise UsageError(f"'{cpus}' leaves no CPU")
    session.call("xend.domain.pincpu", name, vcpu, ",".join(map(str, chosen)))


def sched_credit(session: Session, args: list[str]) -> None:
    facts = {pair[0]: pair[1] for pair in session.call("xend.node.info", 0) if len(pair) > 1}
    if facts.get("xen_scheduler") != "credit":
        raise Failure(f"Xen is running with the {facts.get('xen_scheduler')} scheduler")
    options, _ = CREDIT.parse(args)
    name = options.get("d")
    if "w" in options or "c" in options:
        if name is None:
            raise UsageError("No domain given.")
        weight = integer(options["w"], "weight") if "w" in options else None
        cap = integer(options["c"], "cap") if "c" in options else None
        session.call("xend.domain.sched_credit_set", name, weight, cap)
        return
    domains = session.domains()
    if name is not None:
        domains = [domain for domain in domains if name in _names(domain)]
        if not domains:
            raise Failure(f"Domain '{name}' does not exist.", 3)
    session.print(render.CREDIT_HEADER)
    for domain in domains:
        try:
            found = session.call("xend.domain.sched_credit_get", str(sxp.child_value(domain, "name")))
        except Fault:  # gone, or of a pool with another scheduler
            found = {}
        session.print(render.sched_credit(domain, int(found.get("weight", -1)), int(found.get("cap", -1))))


def _names(domain: sxp.Sxp) -> tuple[str, str]:
    return str(sxp.child_value(domain, "name")), str(sxp.child_value(domain, "domid"))
