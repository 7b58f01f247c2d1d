"""What a network card's frontend may be told, and what it and the backend have agreed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from domu.frontends.xenbus import number


@dataclass(frozen=True)
class Options:
    """What the frontend would like; the backend may allow less."""

    queues: int = 1
    split_event_channels: bool = True
    """One port for each ring instead of one for both."""
    scatter_gather: bool = True
    """Packets of more than a page."""
    gso: bool = True
    """TCP segmentation is left to whoever needs it."""
    checksum_offload: bool = True
    """We take packets whose checksum is blank."""
    tx_pages: int = 64
    """Per queue: pages for packets on their way out."""
    rx_pages: int = 64
    """Per queue: pages offered for packets that come in."""


@dataclass(frozen=True)
class Agreed:
    """What is used."""

    queues: int
    split_event_channels: bool
    scatter_gather: bool
    gso: bool
    """We may send what needs segmentation."""

    @classmethod
    def between(cls, options: Options, backend: Mapping[str, str]) -> Agreed:
        """`backend` are its nodes before it is connected. Numbers that are none count as absent."""
        sg = options.scatter_gather and number(backend, "feature-sg") == 1
        return cls(
            queues=max(1, min(options.queues, number(backend, "multi-queue-max-queues", 1))),
            split_event_channels=options.split_event_channels
            and number(backend, "feature-split-event-channels") == 1,
            scatter_gather=sg,
            gso=sg and options.gso and number(backend, "feature-gso-tcpv4") == 1,
        )


def nodes(options: Options) -> dict[str, object]:
    """What we say we can, before the rings."""
    return {
        "request-rx-copy": 1,
        "feature-rx-notify": 1,
        "feature-sg": int(options.scatter_gather),
        "feature-gso-tcpv4": int(options.scatter_gather and options.gso),
        "feature-gso-tcpv6": int(options.scatter_gather and options.gso),
        "feature-no-csum-offload": int(not options.checksum_offload),
        "feature-ipv6-csum-offload": int(options.checksum_offload),
    }


def parse_mac(text: str) -> bytes:
    """Raises: ValueError for what is no MAC address."""
    mac = bytes.fromhex(text.replace(":", ""))
    if len(mac) != 6 or text.count(":") != 5:
        raise ValueError(f"{text!r} is no MAC address")
    return mac
