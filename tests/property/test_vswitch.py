"""Learning and VLANs against an obvious model: no frame leaves its VLAN, every frame reaches whom it must."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.netback.config import Membership, VlanMode, membership
from tests.vswitch_kit import BROADCAST, Bench, Plug, bench, frame, mac

VLANS = st.sampled_from([0, 1, 2, 3])
TRUNKS = st.frozensets(VLANS, max_size=4)
PORTS = st.lists(
    st.builds(membership, st.none() | VLANS, TRUNKS, isolated=st.booleans()), min_size=2, max_size=5
)
ADDRESSES = st.sampled_from(
    [*(mac(number) for number in range(1, 5)), BROADCAST, b"\x01\x00\x5e\x00\x00\x01"]
)
SENDS = st.lists(
    st.tuples(st.integers(0, 4), ADDRESSES, st.integers(1, 4).map(mac), st.none() | VLANS), max_size=25
)


@dataclass
class Model:
    """What IEEE 802.1Q says, in its plainest words."""

    ports: list[Membership]

    def __post_init__(self) -> None:
        self.learned: dict[tuple[int, bytes], int] = {}

    def carries(self, port: int, vlan: int) -> bool:
        m = self.ports[port]
        return (m.mode is not VlanMode.TRUNK and vlan == m.tag) or (
            m.mode is not VlanMode.ACCESS and vlan in m.trunks
        )

    def classify(self, port: int, tag: int | None) -> int | None:
        """The frame's VLAN; None: the port may not send it."""
        m = self.ports[port]
        if tag:
            allowed = m.mode is not VlanMode.ACCESS and tag in m.trunks
            return tag if allowed else None
        vlan = 0 if m.mode is VlanMode.TRUNK else m.tag
        return vlan if self.carries(port, vlan) else None

    def tag_out(self, port: int, vlan: int) -> int | None:
        m = self.ports[port]
        if vlan == 0 or m.mode is VlanMode.ACCESS or (m.mode is VlanMode.NATIVE and vlan == m.tag):
            return None
        return vlan

    def send(self, source_port: int, to: bytes, source: bytes, tag: int | None) -> dict[int, int | None]:
        """Who gets it, and with which tag."""
        vlan = self.classify(source_port, tag)
        if vlan is None:
            return {}
        self.learned[vlan, source] = source_port
        known = None if to[0] & 1 else self.learned.get((vlan, to))
        wanted = range(len(self.ports)) if known is None else [known]
        isolated = self.ports[source_port].isolated
        return {
            port: self.tag_out(port, vlan)
            for port in wanted
            if port != source_port
            and self.carries(port, vlan)
            and not (isolated and self.ports[port].isolated)
        }


def tag_of(received: bytes) -> int | None:
    kind, tag = struct.unpack_from("!HH", received, 12)
    return tag if kind == 0x8100 else None


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(PORTS, SENDS)
def test_frames_go_where_the_model_says(
    ports: list[Membership], sends: list[tuple[int, bytes, bytes, int | None]]
) -> None:
    with bench() as table:
        net = table.network()
        plugs = [table.plug(net, port) for port in ports]
        model = Model(ports)
        for number, (port, to, source, tag) in enumerate(sends):
            check_one(table, plugs, model, number, (port % len(ports), to, source, tag))


def check_one(
    table: Bench, plugs: list[Plug], model: Model, number: int, sent: tuple[int, bytes, bytes, int | None]
) -> None:
    port, to, source, tag = sent
    payload = struct.pack("!I", number) * 12
    got = table.exchange(plugs[port], frame(to, source, payload, vlan=tag))
    found = {plugs.index(plug): tag_of(frames[0]) for plug, frames in got.items()}
    assert found == model.send(port, to, source, tag)
    for frames in got.values():
        assert [item[-len(payload) :] for item in frames] == [payload]
