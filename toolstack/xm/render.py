"""The output formats of xm that scripts parse. Pure: domain SXPs in, lines out."""

from __future__ import annotations

from toolstack.sxp import child_value, children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from toolstack.sxp import Sxp

STATES = ("halted", "paused", "running", "suspended", "shutdown", "crashed", "unknown")
"""Names of `--state`, by the number in a domain's `status`."""


def _domid(domain: Sxp) -> str:
    value = child_value(domain, "domid")
    return "" if value is None else str(value)


def _name(domain: Sxp) -> str:
    return str(child_value(domain, "name", "??"))


def brief_list(domains: Iterable[Sxp]) -> list[str]:
    """`xm list`."""
    lines = [f"{'Name':40} {'ID':>5} {'Mem':>5} {'VCPUs':>5} {'State':>10} {'Time(s)':>9}"]
    for domain in domains:
        memory = int(child_value(domain, "memory", 0))
        vcpus = int(child_value(domain, "online_vcpus", child_value(domain, "vcpus", 0)))
        state = child_value(domain, "state", "")
        seconds = float(child_value(domain, "cpu_time", 0.0))
        lines.append(
            f"{_name(domain):40} {_domid(domain):>5} {memory:5} {vcpus:5} {state:>10} {seconds:8.1f}"
        )
    return lines


def ranges(numbers: Iterable[int]) -> str:
    """`0-2,5` for 0 1 2 5."""
    out: list[list[int]] = []
    for number in sorted(set(numbers)):
        if out and number == out[-1][1] + 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in out)


def affinity(cpumap: Iterable[Any], nr_cpus: int) -> str:
    """The last column of `xm vcpu-list`."""
    cpus = {int(cpu) for cpu in cpumap if int(cpu) < nr_cpus}
    if len(cpus) == nr_cpus:
        return "any cpu"
    return ranges(cpus) or "no cpus"


def _vcpu_state(vcpu: Sxp) -> tuple[str, str]:
    """The columns CPU and State of `xm vcpu-list`."""
    cpu = int(child_value(vcpu, "cpu", -1))
    if cpu < 0:
        return "", ""
    if not int(child_value(vcpu, "online", 0)):
        return "-", "--p"
    running = "r" if int(child_value(vcpu, "running", 0)) else "-"
    blocked = "b" if int(child_value(vcpu, "blocked", 0)) else "-"
    return str(cpu), f"{running}{blocked}-"


def vcpu_list(infos: Iterable[Sxp], nr_cpus: int) -> list[str]:
    """`xm vcpu-list`, from the replies of getVCPUInfo."""
    lines = [f"{'Name':32} {'ID':>5} {'VCPU':>5} {'CPU':>5} {'State':>5} {'Time(s)':>9} CPU Affinity"]
    for info in infos:
        for vcpu in children(info, "vcpu"):
            number = int(child_value(vcpu, "number"))
            cpu, state = _vcpu_state(vcpu)
            seconds = float(child_value(vcpu, "cpu_time", 0.0))
            cpus = affinity(child_value(vcpu, "cpumap", []), nr_cpus)
            lines.append(
                f"{_name(info):32} {_domid(info):>5} {number:5} {cpu:>5} {state:>5}  {seconds:8.1f} {cpus}"
            )
    return lines


def node_info(pairs: Iterable[list[Any]]) -> list[str]:
    """`xm info`: everything but the first pair, as xm has always done."""
    return [f"{pair[0]:23}: {pair[1] if len(pair) > 1 else '(none)'}" for pair in list(pairs)[1:]]


def domain_state(domain: Sxp, paused_by_admin: bool) -> str:
    """`xm domstate`."""
    flags = str(child_value(domain, "state", ""))
    if _domid(domain) == "" or "s" in flags:
        return "shutoff"
    if "d" in flags:
        return "shutdown"
    if "c" in flags:
        return "crashed"
    if "p" in flags:
        return "paused by admin" if paused_by_admin else "paused"
    return "idle" if "b" in flags else "running"


def seconds_up(domain: Sxp, now: float, host_uptime: float) -> int:
    """Whole seconds since the domain started; 0 when it is not running."""
    domid = _domid(domain)
    if domid == "":
        return 0
    if domid == "0":
        return round(host_uptime)
    return max(0, round(now - float(child_value(domain, "start_time", now))))


def _clock(seconds: int, with_seconds: bool) -> str:
    days, rest = divmod(seconds, 86400)
    prefix = f"{days} day{'s' if days > 1 else ''}, " if days else ""
    text = f"{rest // 3600:2}:{rest // 60 % 60:02}"
    return prefix + text + (f":{rest % 60:02}" if with_seconds else "")


UPTIME_HEADER = f"{'Name':33} {'ID':>4} Uptime "


def uptime(domain: Sxp, seconds: int) -> str:
    """A row of `xm uptime`."""
    return f"{_name(domain):32} {_domid(domain):>5} {_clock(seconds, True)}"


def uptime_short(domain: Sxp, seconds: int, time_of_day: str) -> str:
    """A row of `xm uptime -s`."""
    return f" {time_of_day} up {_clock(seconds, False)}, {_name(domain)} ({_domid(domain)})"


CREDIT_HEADER = f"{'Name':33} {'ID':>4} {'Weight':>6} {'Cap':>4}"


def sched_credit(domain: Sxp, weight: int, cap: int) -> str:
    """A row of `xm sched-credit`."""
    return f"{_name(domain):32} {_domid(domain):>5} {weight:6} {cap:4}"


class _Facts:
    """The entries of a frontend, which its guest may have written: any text, or none."""

    def __init__(self, pairs: Any) -> None:
        self.found: dict[str, Any] = {}
        for pair in pairs if isinstance(pairs, list) else []:
            if isinstance(pair, list) and len(pair) == 2:
                self._add(str(pair[0]), pair[1])

    def _add(self, name: str, value: Any) -> None:
        """Of several queues, and of several pages of a ring, the first stands for all."""
        if name == "queue-0" and isinstance(value, list):
            for inner, text in _Facts(value).found.items():
                self.found.setdefault(inner, text)
        else:
            self.found[name.removesuffix("0") if name.endswith("ring-ref0") else name] = value

    def number(self, name: str, default: int = -1) -> int:
        text = str(self.found.get(name, ""))
        return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else default

    def text(self, name: str) -> str:
        return "".join(char if char.isprintable() else "?" for char in str(self.found.get(name, "??")))


def block_list(devices: Iterable[Any]) -> list[str]:
    """`xm block-list`: nothing at all when there is nothing."""
    lines = []
    for devid, pairs in devices:
        facts = _Facts(pairs)
        port, ring = facts.number("event-channel"), facts.number("ring-ref")
        lines.append(
            f"{int(devid):<5}  {facts.number('backend-id'):<3}  {facts.number('handle', 0):<3}   "
            f"{facts.number('state'):<3}    {port:<3}    {ring:<5} {facts.text('backend'):<30}  "
        )
    return ["Vdev  BE handle state evt-ch ring-ref BE-path", *lines] if lines else []


def network_list(devices: Iterable[Any]) -> list[str]:
    """`xm network-list`: nothing at all when there is nothing."""
    lines = []
    for devid, pairs in devices:
        facts = _Facts(pairs)
        port = facts.number("event-channel", facts.number("event-channel-rx"))
        rings = f"{facts.number('tx-ring-ref'):<5}/{facts.number('rx-ring-ref'):<5}"
        lines.append(
            f"{int(devid):<3} {facts.number('backend-id'):<3}{facts.text('mac'):<17}    "
            f"{facts.number('handle', 0):<3}   {facts.number('state'):<3}    {port:<3}   {rings}   "
            f"{facts.text('backend'):<30}  "
        )
    head = "Idx BE     MAC Addr.     handle state evt-ch tx-/rx-ring-ref BE-path"
    return [head, *lines] if lines else []
