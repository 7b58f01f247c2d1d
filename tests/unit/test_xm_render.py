"""The formats scripts parse, byte for byte."""

from __future__ import annotations

import pytest

from toolstack.sxp import Sxp
from toolstack.xm import render

RUNNING: Sxp = [
    "domain", ["domid", 7], ["name", "debian"], ["memory", 256], ["vcpus", 4], ["online_vcpus", 2],
    ["state", "-b----"], ["cpu_time", 123.456], ["start_time", 1000.0], ["uuid", "u"],
]  # fmt: skip
HALTED: Sxp = ["domain", ["name", "managed"], ["memory", 128], ["vcpus", 1]]
DOM0: Sxp = [
    "domain",
    ["domid", 0],
    ["name", "Domain-0"],
    ["memory", 2048],
    ["vcpus", 2],
    ["state", "r-----"],
]


def test_list() -> None:
    assert render.brief_list([DOM0, RUNNING, HALTED]) == [
        "Name                                        ID   Mem VCPUs      State   Time(s)",
        "Domain-0                                     0  2048     2     r-----      0.0",
        "debian                                       7   256     2     -b----    123.5",
        "managed                                          128     1                 0.0",
    ]


def test_list_with_long_values() -> None:
    long: Sxp = ["domain", ["domid", 123456], ["name", "n" * 50], ["memory", 1234567], ["vcpus", 1]]
    assert render.brief_list([long])[1] == "n" * 50 + " 123456 1234567     1                 0.0"


def test_vcpu_list() -> None:
    info: Sxp = [
        "domain", ["domid", 7], ["name", "debian"], ["vcpu_count", 4],
        ["vcpu", ["number", 0], ["online", 1], ["blocked", 0], ["running", 1], ["cpu_time", 1.25], ["cpu", 3],
         ["cpumap", [0, 1, 2, 3, 4, 5, 6, 7]]],
        ["vcpu", ["number", 1], ["online", 1], ["blocked", 1], ["running", 0], ["cpu_time", 12.0], ["cpu", 0],
         ["cpumap", [0, 1, 2, 5]]],
        ["vcpu", ["number", 2], ["online", 0], ["blocked", 1], ["running", 0], ["cpu_time", 0.0], ["cpu", 0],
         ["cpumap", [3]]],
    ]  # fmt: skip
    halted: Sxp = [
        "domain", ["domid", None], ["name", "managed"], ["vcpu_count", 1],
        ["vcpu", ["number", 0], ["online", 0], ["blocked", 0], ["running", 0], ["cpu_time", 0.0], ["cpu", -1],
         ["cpumap", list(range(64))]],
    ]  # fmt: skip
    assert render.vcpu_list([info, halted], 8) == [
        "Name                                ID  VCPU   CPU State   Time(s) CPU Affinity",
        "debian                               7     0     3   r--       1.2 any cpu",
        "debian                               7     1     0   -b-      12.0 0-2,5",
        "debian                               7     2     -   --p       0.0 3",
        "managed                                    0                   0.0 any cpu",
    ]


@pytest.mark.parametrize(
    ("cpus", "text"),
    [([], "no cpus"), ([0], "0"), ([0, 1], "any cpu"), ([1, 5], "1"), ([0, 1, 2, 3], "any cpu")],
)
def test_affinity(cpus: list[int], text: str) -> None:
    assert render.affinity(cpus, 2) == text


def test_ranges() -> None:
    assert render.ranges([7, 0, 1, 2, 4, 1]) == "0-2,4,7"


def test_info_leaves_out_the_first_pair() -> None:
    pairs = [["system", "Linux"], ["host", "h"], ["xen_extra", ""], ["odd"], ["cpu_topology", "\na\nb"]]
    assert render.node_info(pairs) == [
        "host                   : h",
        "xen_extra              : ",
        "odd                    : (none)",
        "cpu_topology           : \na\nb",
    ]


@pytest.mark.parametrize(
    ("state", "admin", "text"),
    [
        ("r-----", False, "running"),
        ("-b----", False, "idle"),
        ("------", False, "running"),
        ("--p---", False, "paused"),
        ("-bp---", True, "paused by admin"),
        ("---s--", False, "shutoff"),
        ("----c-", False, "crashed"),
        ("-----d", False, "shutdown"),
    ],
)
def test_domstate(state: str, admin: bool, text: str) -> None:
    assert render.domain_state(["domain", ["domid", 1], ["state", state]], admin) == text


def test_domstate_of_a_halted_domain() -> None:
    assert render.domain_state(HALTED, False) == "shutoff"


@pytest.mark.parametrize(
    ("seconds", "text", "short"),
    [
        (0, " 0:00:00", " 0:00"),
        (3661, " 1:01:01", " 1:01"),
        (86400, "1 day,  0:00:00", "1 day,  0:00"),
        (2 * 86400 + 45296, "2 days, 12:34:56", "2 days, 12:34"),
    ],
)
def test_uptime(seconds: int, text: str, short: str) -> None:
    assert render.uptime(RUNNING, seconds) == f"debian                               7 {text}"
    assert render.uptime_short(RUNNING, seconds, "12:00:00") == f" 12:00:00 up {short}, debian (7)"


def test_uptime_header_and_sources() -> None:
    assert render.UPTIME_HEADER == "Name                                ID Uptime "
    assert render.seconds_up(RUNNING, 1060.4, 5.0) == 60
    assert render.seconds_up(DOM0, 1060.0, 5.6) == 6
    assert render.seconds_up(HALTED, 1060.0, 5.0) == 0
    assert render.seconds_up(["domain", ["domid", 3]], 1060.0, 5.0) == 0


def test_sched_credit() -> None:
    assert render.CREDIT_HEADER == "Name                                ID Weight  Cap"
    assert render.sched_credit(RUNNING, 256, 0) == "debian                               7    256    0"


def test_block_list() -> None:
    plain = [["backend", "/b/vbd/7/51712"], ["backend-id", "0"], ["state", "4"], ["event-channel", "9"],
             ["ring-ref", "8"], ["virtual-device", "51712"]]  # fmt: skip
    queues = [["backend", "/b/vbd/7/51728"], ["backend-id", "0"], ["state", "4"],
              ["multi-queue-num-queues", "2"],
              ["queue-0", [["event-channel", "12"], ["ring-ref0", "31"], ["ring-ref1", "32"]]],
              ["queue-1", [["event-channel", "13"], ["ring-ref0", "33"]]]]  # fmt: skip
    assert render.block_list([[51712, plain], [51728, queues]]) == [
        "Vdev  BE handle state evt-ch ring-ref BE-path",
        "51712  0    0     4      9      8     /b/vbd/7/51712                  ",
        "51728  0    0     4      12     31    /b/vbd/7/51728                  ",
    ]
    assert render.block_list([]) == []


def test_network_list() -> None:
    pairs = [["backend", "/b/vif/7/0"], ["backend-id", "0"], ["handle", "0"], ["mac", "00:16:3e:00:00:01"],
             ["state", "4"], ["event-channel-tx", "9"], ["event-channel-rx", "10"], ["tx-ring-ref", "768"],
             ["rx-ring-ref", "769"]]  # fmt: skip
    assert render.network_list([[0, pairs]]) == [
        "Idx BE     MAC Addr.     handle state evt-ch tx-/rx-ring-ref BE-path",
        "0   0  00:16:3e:00:00:01    0     4      10    768  /769     /b/vif/7/0                      ",
    ]
    assert render.network_list([]) == []


@pytest.mark.parametrize(
    "pairs",
    [
        [], "x", None, [["state"]], [["state", ["4"]]], [["state", "\u0664"]], [["state", "9" * 40]],
        ["vbd", 5],
        [["backend", "/\x1b[2J\n"]], [["queue-0", [["queue-0", []]]]], [[["a"], "b"]],
    ],
)  # fmt: skip
def test_what_a_guest_writes_breaks_no_list(pairs: object) -> None:
    for lines in (render.block_list([[1, pairs]]), render.network_list([[1, pairs]])):
        assert len(lines) == 2 and lines[1].isprintable()
