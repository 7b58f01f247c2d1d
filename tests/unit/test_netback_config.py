"""What users write about networks."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.bus import DeviceError
from backends.netback import binding
from backends.netback.config import (
    ALL_VLANS,
    BridgeSpec,
    ConfigError,
    Membership,
    NetworkConfig,
    VlanMode,
    network_from,
    parse_bridge,
    parse_forward,
    parse_group,
    parse_rate,
    parse_uplink,
    parse_vif_rate,
    user_network,
)
from backends.netback.device import FrontendQueue, frontend_request, vif_config
from backends.netback.networks import read_networks, write_networks


@pytest.mark.parametrize(
    ("text", "network", "membership"),
    [
        ("", "xenbr0", Membership()),
        ("lan", "lan", Membership()),
        ("lan.7", "lan", Membership(tag=7)),
        ("lan:7:8", "lan", Membership(VlanMode.TRUNK, 0, frozenset({7, 8}))),
        ("lan.5:7:8", "lan", Membership(VlanMode.NATIVE, 5, frozenset({7, 8}))),
        ("lan.0", "lan", Membership()),
    ],
)
def test_bridge(text: str, network: str, membership: Membership) -> None:
    assert parse_bridge(text) == BridgeSpec(network, membership=membership)


def test_bridge_group() -> None:
    spec = parse_bridge("lan.dmz")
    assert spec == BridgeSpec("lan", group="dmz")
    config = NetworkConfig("lan", groups=("dmz,tag=7,isolated,anti-spoof,rate=1MB/s@100ms",)).check()
    assert config.resolve(spec) == Membership(tag=7, isolated=True, anti_spoof=True, rate=(100000, 100000))
    with pytest.raises(ConfigError, match="no port group 'other'; there are: dmz"):
        config.resolve(parse_bridge("lan.other"))


@pytest.mark.parametrize(
    "text", ["9lan", "lan.4095", "lan:x", "lan.", "lan:", "lan.dmz:5", "a b", "x" * 40, "lan.-1", "../x"]
)
def test_bad_bridges(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_bridge(text)


def test_rates() -> None:
    assert parse_rate("10Mb/s") == (62500, 50000)
    assert parse_rate("2MB/s@20ms") == (40000, 20000)
    assert parse_vif_rate("62500,50000") == (62500, 50000)
    assert parse_vif_rate("0,0") is None
    for text in ("", "10", "0Mb/s", "1b/s@1us", "10Mb/s@1h"):
        with pytest.raises(ConfigError):
            parse_rate(text)
    for text in ("", "1", "a,b", "1,99999999999", "-1,5"):
        with pytest.raises(ConfigError):
            parse_vif_rate(text)


@pytest.mark.parametrize(
    "text",
    [
        "user",
        "user,net=192.168.7.0/24",
        "listen::5555",
        "connect:[::1]:5555",
        "udp::1,to=127.0.0.1:2",
        "mcast:230.0.0.1:1234",
        "unix-listen:/x",
        "unix-connect:/x",
        "unix-dgram:/x,to=/y",
        "vde:/v",
        "tap",
        "tap:t0",
        "listen::1,tag=5",
        "listen::1,trunks=5+6,rate=1Mb/s",
    ],
)
def test_uplinks(text: str) -> None:
    assert parse_uplink(text).text == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("modem", "there are user"),
        ("user:x", "want user"),
        ("listen", "want listen:ADDRESS:PORT"),
        ("listen:5", "want ADDRESS:PORT"),
        ("udp::1", "to="),
        ("vde:x", "absolute"),
        ("user,nett=1", "unknown option"),
        ("user,net=10.0.2.0/30", "too few"),
        ("user,host=10.0.3.1", "not in 10.0.2.0/24"),
        ("user,mtu=5", "mtu"),
        ("listen::1,tag=9999", "VLAN"),
    ],
)
def test_bad_uplinks(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_uplink(text)


def test_uplinks_are_trunks_of_all_vlans_but_user_mode_is_not() -> None:
    assert parse_uplink("listen::1").membership.trunks == ALL_VLANS
    assert parse_uplink("user").membership == Membership()
    assert parse_uplink("user,tag=5").membership == Membership(tag=5)


def test_user_network_follows_its_subnet() -> None:
    net = user_network({"net": "192.168.7.0/24"})
    assert [str(at) for at in (net.host, net.dns, net.dhcp_start)] == [
        "192.168.7.2",
        "192.168.7.3",
        "192.168.7.15",
    ]


def test_forwards() -> None:
    assert str(parse_forward("8080-80")) == "tcp:127.0.0.1:8080-:80"
    assert str(parse_forward("udp:0.0.0.0:53-10.0.2.16:53")) == "udp:0.0.0.0:53-10.0.2.16:53"
    for text in ("8080", "8080-", "x-80", "1-99999", "0-80", "tcp:a:1-2"):
        with pytest.raises(ConfigError):
            parse_forward(text)


def test_networks_file(tmp_path: Path) -> None:
    path = tmp_path / "networks.json"
    assert read_networks(path) == [NetworkConfig("xenbr0", uplinks=("user",))]
    configs = [NetworkConfig("lan", uplinks=("listen::1",), groups=("g,tag=1",), mtu=9000, storm_pps=0)]
    write_networks(path, configs)
    assert read_networks(path) == configs
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"networks\.json"):
        read_networks(path)


@pytest.mark.parametrize(
    "values",
    [
        [],
        {},
        {"name": 5},
        {"name": "x", "uplinks": "user"},
        {"name": "x", "other": 1},
        {"name": "x", "mtu": 5},
        {"name": "x", "uplinks": ["user", "user"]},
        {"name": "x", "groups": ["a", "a"]},
        {"name": "x", "ageing_s": 0},
        {"name": "x", "uplinks": ["user", "user,tag=5"]},
    ],
)
def test_bad_networks(values: object) -> None:
    with pytest.raises(ConfigError):
        network_from(values)


def test_parse_group_refuses_unknown_options() -> None:
    with pytest.raises(ConfigError, match="unknown option 'tags'"):
        parse_group("g,tags=5")


# --- what xend and the frontend write

FRONTEND = {"tx-ring-ref": "8", "rx-ring-ref": "9", "event-channel": "5", "request-rx-copy": "1"}


def test_the_oldest_frontend() -> None:
    request = frontend_request(FRONTEND)
    assert request.queues == (FrontendQueue(8, 9, 5, 5),)
    assert request.caps == binding.CSUM4
    assert not request.scatter_gather and not request.multicast_control and request.ctrl is None


def test_a_modern_frontend() -> None:
    nodes = {
        "request-rx-copy": "1",
        "multi-queue-num-queues": "2",
        "feature-sg": "1",
        "feature-gso-tcpv4": "1",
        "feature-gso-tcpv6": "1",
        "feature-ipv6-csum-offload": "1",
        "request-multicast-control": "1",
        "ctrl-ring-ref": "1",
        "event-channel-ctrl": "2",
    }
    for queue in range(2):
        for number, name in enumerate(("tx-ring-ref", "rx-ring-ref", "event-channel-tx", "event-channel-rx")):
            nodes[f"queue-{queue}/{name}"] = str(10 * queue + number)
    request = frontend_request(nodes)
    assert request.queues == (FrontendQueue(0, 1, 2, 3), FrontendQueue(10, 11, 12, 13))
    all_caps = binding.CSUM4 | binding.CSUM6 | binding.TSO4 | binding.TSO6
    assert (request.caps, request.ctrl) == (all_caps, (1, 2))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"request-rx-copy": "0"}, "copied packets"),
        ({"tx-ring-ref": "x"}, "tx-ring-ref"),
        ({"rx-ring-ref": "99999999999"}, "rx-ring-ref"),
        ({"event-channel": ""}, "event-channel"),
        ({"multi-queue-num-queues": "99"}, "queues"),
        ({"multi-queue-num-queues": "2"}, "queue-0"),
        ({"ctrl-ring-ref": "5"}, "event-channel-ctrl"),
    ],
)
def test_lying_frontends(changed: dict[str, str], why: str) -> None:
    with pytest.raises(DeviceError, match=why):
        frontend_request(FRONTEND | changed)


def test_no_gso_without_scatter_gather() -> None:
    assert frontend_request(FRONTEND | {"feature-gso-tcpv4": "1"}).caps == binding.CSUM4


def test_vif_nodes() -> None:
    config = vif_config({"mac": "00:16:3e:00:00:01", "rate": "100,50"}, 3, 1)
    assert (config.name, config.rate, config.mtu) == ("vif3.1", (100, 50), 0)
    with pytest.raises(DeviceError, match="mac"):
        vif_config({"mac": "01:16:3e:00:00:01"}, 3, 1)
