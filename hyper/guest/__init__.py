"""The guest kit: what a process of a process domain links. `connect` is where to begin. See
hyper/guest/README.md.
"""

from hyper.guest.arena import Arena, Buffer
from hyper.guest.client import Hypervisor, attach, connect
from hyper.guest.grants import Mapping
from hyper.guest.ports import Port
from hyper.public.errors import GrantError, HypervisorGone, XenError

__all__ = [
    "Arena",
    "Buffer",
    "GrantError",
    "Hypervisor",
    "HypervisorGone",
    "Mapping",
    "Port",
    "XenError",
    "attach",
    "connect",
]
