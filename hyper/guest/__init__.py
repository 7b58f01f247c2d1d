"""The guest kit: what a process of a process domain links. `connect` is where to begin. See
hyper/guest/README.md.
"""

from hyper.guest.arena import Arena, Buffer
from hyper.guest.client import Hypervisor, attach, connect
from hyper.guest.grants import GrantCopy, Mapping
from hyper.guest.memory import Pages
from hyper.guest.ports import Port
from hyper.public.errors import GrantError, HypervisorGone, XenError
from hyper.public.types import ProcessDomain

__all__ = [
    "Arena",
    "Buffer",
    "GrantCopy",
    "GrantError",
    "Hypervisor",
    "HypervisorGone",
    "Mapping",
    "Pages",
    "Port",
    "ProcessDomain",
    "XenError",
    "attach",
    "connect",
]
