"""What a block device is asked to be: by xend (its nodes) and by the frontend (what it has published)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backends.bus import DeviceError, number

SECTOR_BYTES = 512
"""Of the protocol, whatever the disk's own."""
MAX_INDIRECT_SEGMENTS = 256
MAX_RING_PAGE_ORDER = 4
MAX_QUEUES = 4
PROTOCOLS = {"x86_64-abi": 0, "x86_32-abi": 1}
"""`protocol` nodes; a frontend without one is like us: 64-bit."""
PERSISTENT_PER_PAGE = 1056
"""Grants kept mapped for each ring page: 32 requests of 32 segments, and the frames that list these, are what
blkfront uses unless told otherwise. Xen's blkback has the same number."""
MAX_PERSISTENT = 4 * PERSISTENT_PER_PAGE

RAW_FORMATS = ("raw", "aio", "")
QEMU_FORMATS = {"vhd": "vpc", **{name: name for name in "qcow qcow2 qed vdi vhdx vmdk vpc".split()}}
"""tap's name of a format -> QEMU's."""
REMOTE = ("nbd", "iscsi", "nfs", "rbd")


@dataclass(frozen=True)
class DiskConfig:
    """xend's half."""

    target: str
    """A path, or a URL for what is `remote`. "" is a drive without a medium."""
    format: str
    """QEMU's name; "raw" is served by ourselves when it is a file or a device."""
    remote: bool
    read_only: bool
    exclusive: bool
    """No other guest may use it at the same time: with "r" others may read, with "w!" nothing is checked."""
    cdrom: bool
    direct: bool
    """O_DIRECT was asked for (direct-io-safe)."""
    discard: bool

    @classmethod
    def from_nodes(cls, nodes: Mapping[str, str]) -> DiskConfig:
        """Raises: DeviceError."""
        kind, params, mode = nodes.get("type", ""), nodes.get("params", ""), nodes.get("mode", "w")
        if mode not in ("r", "w", "w!"):
            raise DeviceError(f"mode is {mode!r}, not r, w or w!")
        cdrom = nodes.get("device-type") == "cdrom"
        if not params and not cdrom:
            raise DeviceError("no disk is named")
        image_format, target, remote, direct = _target(kind, params)
        return cls(
            target, image_format, remote,
            read_only=mode == "r" or cdrom,
            exclusive=mode != "w!",
            cdrom=cdrom,
            direct=direct or nodes.get("direct-io-safe") == "1",
            discard=nodes.get("discard-enable", "1") != "0",
        )  # fmt: skip


def _target(kind: str, params: str) -> tuple[str, str, bool, bool]:
    """Format, path or URL, whether it is a URL, whether its type means O_DIRECT."""
    if kind in REMOTE or any(params.startswith((f"{name}:", f"{name}+")) for name in REMOTE):
        return "raw", params, True, False
    if kind in ("tap", "tap2", "qdisk"):
        name, colon, path = params.partition(":")
        if not colon:
            name, path = "raw", params
        if name in QEMU_FORMATS:
            return QEMU_FORMATS[name], path, "://" in path or path.startswith("nbd:"), False
        if name not in RAW_FORMATS:
            raise DeviceError(f"{name}: no image format we know; there are raw, {', '.join(QEMU_FORMATS)}")
        return "raw", path, False, name == "aio"
    if kind not in ("phy", "file", ""):
        raise DeviceError(f"type is {kind!r}; there are phy, file, tap, {', '.join(REMOTE)}")
    return "raw", params, False, True


@dataclass(frozen=True)
class QueueConfig:
    ring_refs: tuple[int, ...]
    event_channel: int


@dataclass(frozen=True)
class FrontendConfig:
    """The frontend's half. Hostile until it has come through here."""

    protocol: int
    persistent: bool
    queues: tuple[QueueConfig, ...]

    @classmethod
    def from_nodes(cls, nodes: Mapping[str, str], max_queues: int = MAX_QUEUES) -> FrontendConfig:
        """Raises: DeviceError."""
        name = nodes.get("protocol", "x86_64-abi")
        if name not in PROTOCOLS:
            raise DeviceError(f"protocol is {name[:40]!r}; there are {', '.join(PROTOCOLS)}")
        nr_queues = number(nodes, "multi-queue-num-queues", default=1, maximum=max_queues)
        if not nr_queues:
            raise DeviceError("multi-queue-num-queues is 0")
        prefixes = [""] if nr_queues == 1 else [f"queue-{index}/" for index in range(nr_queues)]
        queues = tuple(_queue(nodes, prefix) for prefix in prefixes)
        return cls(PROTOCOLS[name], nodes.get("feature-persistent", "0").strip() == "1", queues)


def _queue(nodes: Mapping[str, str], prefix: str) -> QueueConfig:
    names = [f"{prefix}ring-ref"]
    if "ring-page-order" in nodes:
        order = number(nodes, "ring-page-order", maximum=MAX_RING_PAGE_ORDER)
        if order or names[0] not in nodes:
            names = [f"{prefix}ring-ref{page}" for page in range(1 << order)]
    refs = tuple(number(nodes, name, maximum=0xFFFFFFFF) for name in names)
    return QueueConfig(refs, number(nodes, f"{prefix}event-channel", maximum=0xFFFFFFFF))


def backend_nodes(
    *, nr_sectors: int, sector_bytes: int, physical_bytes: int, read_only: bool, cdrom: bool, removable: bool,
    discard_bytes: int, max_queues: int,
) -> dict[str, object]:  # fmt: skip
    """What we tell the frontend; see blkif.h of Xen for the meaning. `discard_bytes` 0: no discard."""
    nodes: dict[str, object] = {
        "sectors": nr_sectors,
        "sector-size": sector_bytes,
        "physical-sector-size": physical_bytes,
        "info": 1 * cdrom | 2 * removable | 4 * read_only,
        "feature-flush-cache": 1,
        "feature-barrier": 1,
        "feature-persistent": 1,
        "feature-max-indirect-segments": MAX_INDIRECT_SEGMENTS,
        "max-ring-page-order": MAX_RING_PAGE_ORDER,
        "multi-queue-max-queues": max_queues,
        "feature-discard": int(discard_bytes > 0),
    }
    if discard_bytes:
        nodes |= {"discard-granularity": discard_bytes, "discard-alignment": 0, "discard-secure": 0}
    return nodes
