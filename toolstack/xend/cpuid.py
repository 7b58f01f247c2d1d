"""The CPUID settings of a domain: checked when a client sends them, applied before the domain is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dom0.libxc.cpuid import CpuidError, Rule, changed_leaves, parse, unmet
from toolstack.xend.errors import XendError

if TYPE_CHECKING:
    from toolstack.xend.hypervisor import Hypervisor

MAX_RULES = 256


def read_rules(key: str, value: Any) -> tuple[str, ...]:
    """The rules of `(cpuid (RULE ...))`, or of one rule alone, each in xend's syntax.

    Raises: XendError.
    """
    items = value if isinstance(value, list) else [value] if value not in (None, "") else []
    if len(items) > MAX_RULES or not all(isinstance(item, str) for item in items):
        raise XendError(f"Invalid Configuration: {key} must be strings, at most {MAX_RULES} of them")
    return tuple(rule.text for item in items for rule in _parse(key, item))


def _parse(key: str, text: str) -> tuple[Rule, ...]:
    try:
        return parse(text)
    except CpuidError as error:
        raise XendError(f"Invalid Configuration: {key}: {error}") from None


async def apply(
    hypervisor: Hypervisor, domid: int, wanted: tuple[str, ...], required: tuple[str, ...]
) -> None:
    """Gives a domain that has not run yet the policy its configuration wants.

    Raises: XenError; XendError when the host lacks what `required` (cpuid_check) asks for.
    """
    if not wanted and not required:
        return
    host = await hypervisor.host_cpu_policy()
    missing = unmet([rule for text in required for rule in _parse("cpuid_check", text)], host)
    if missing:
        raise XendError(f"This host's CPU does not meet cpuid_check: {missing[0].text}")
    rules = [rule for text in wanted for rule in _parse("cpuid", text)]
    try:
        leaves = changed_leaves(rules, await hypervisor.get_cpu_policy(domid), host)
    except CpuidError as error:
        raise XendError(f"cpuid: {error}") from None
    if leaves:
        await hypervisor.set_cpu_policy(domid, leaves)
