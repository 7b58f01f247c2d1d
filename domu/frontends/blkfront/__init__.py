"""Disks: `async with blkfront.disk(domain, "xvda") as disk`. See domu/frontends/README.md."""

from domu.frontends.blkfront.config import Options, devid_of
from domu.frontends.blkfront.device import Disk, disk
from domu.frontends.blkfront.request import DiskError

__all__ = ["Disk", "DiskError", "Options", "devid_of", "disk"]
