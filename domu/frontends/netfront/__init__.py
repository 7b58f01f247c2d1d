"""Network cards: `async with netfront.nic(domain, 0) as nic`. See domu/frontends/README.md."""

from domu.frontends.netfront.config import Options
from domu.frontends.netfront.device import Nic, nic
from domu.frontends.netfront.request import Gso, Packet

__all__ = ["Gso", "Nic", "Options", "Packet", "nic"]
