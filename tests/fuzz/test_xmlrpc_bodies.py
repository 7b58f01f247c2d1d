"""Invariant: any body gets an XML-RPC reply, a result or a fault; a call that is refused changes nothing of
the host.
"""

from __future__ import annotations

import xmlrpc.client
from pathlib import Path
from typing import Any

import trio
from hypothesis import example, given
from hypothesis import strategies as st

from tests.xend_fake import FakeHypervisor, FakeProcesses, FakeXenstore
from toolstack.xend import codec
from toolstack.xend.control import Control
from toolstack.xend.errors import BadRequest
from toolstack.xend.hotplug import Hotplug
from toolstack.xend.lifecycle import Lifecycle
from toolstack.xend.node import Node
from toolstack.xend.recovery import recover
from toolstack.xend.rpc import NOT_BUILT, Rpc
from toolstack.xend.server import answer
from toolstack.xend.store import DomainStore

TAGS = "methodCall methodName params param value array data struct member name int i4 i8 string nil boolean"
TAGS += " double base64 dateTime.iso8601 biginteger ex:nil fault x"
pieces = st.sampled_from(
    [f"<{tag}>" for tag in TAGS.split()]
    + [f"</{tag}>" for tag in TAGS.split()]
    + [
        "xend.domain",
        "1",
        "-1",
        "x",
        "&lt;",
        "&x;",
        "<!DOCTYPE a>",
        "<![CDATA[x]]>",
        "<?p?>",
        "9" * 30,
        "\x00",
        " ",
    ]
)
xmlish = st.lists(pieces, max_size=40).map(lambda parts: "".join(parts).encode())
wrapped = xmlish.map(
    lambda inner: (
        b"<methodCall><methodName>xend.domain</methodName><params>" + inner + b"</params></methodCall>"
    )
)

text = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(1 << 31), (1 << 31) - 1) | st.floats() | text
scalars |= st.sampled_from(
    ["Domain-0", "deb", "all", "vm", "linux", "/dev/null", "0", "(unknown-0)", "poweroff"]
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=2),
    max_leaves=12,
)
keys = st.sampled_from(
    "name uuid memory maxmem vcpus vcpu_avail cpus cpu cpu_weight cpu_cap on_crash image device pool_name"
    " description extra features backend bootloader kernel args".split()
)
images = st.lists(st.tuples(keys, values).map(list), max_size=3).map(
    lambda items: ["image", ["linux", ["kernel", "/dev/null"], *items]]
)
configs = st.lists(st.tuples(keys, values).map(list) | images, max_size=6).map(
    lambda items: ["vm", *items, ["name", "fuzz"], ["image", ["linux", ["kernel", "/dev/null"]]]]
)


class Host:
    """A xend over a fake host, entered by each test once."""

    def __init__(self, store: DomainStore) -> None:
        self.hypervisor = FakeHypervisor()
        self.xenstore = FakeXenstore(self.hypervisor)
        self.life = Lifecycle(
            self.hypervisor,
            self.xenstore,
            store,
            processes=FakeProcesses(),
            console_path=lambda domid: Path(f"/{domid}"),
        )
        self.rpc = Rpc(
            self.life, Control(self.life), Hotplug(self.life), Node(self.hypervisor, Path("/nowhere"))
        )


def ask(*bodies: bytes) -> tuple[list[Any], Host]:
    """The replies, decoded: a value or a Fault."""
    replies: list[Any] = []

    async def run() -> Host:
        with DomainStore(":memory:") as store:
            host = Host(store)
            async with trio.open_nursery() as nursery:
                await nursery.start(host.life.run, recover)
                for body in bodies:
                    with trio.fail_after(10):
                        replies.append(decode(await answer(host.rpc, body)))
                for domain in list(host.life.domains.values()):
                    await host.life.destroy(domain)
                nursery.cancel_scope.cancel()
        return host

    host = trio.run(run)
    assert list(host.hypervisor.domains) == [0]
    assert not host.xenstore.introduced
    return replies, host


def decode(body: bytes) -> Any:
    try:
        return xmlrpc.client.loads(body)[0][0]
    except xmlrpc.client.Fault as fault:
        assert not fault.faultString.startswith("internal error"), fault.faultString
        return fault


@given(st.binary(max_size=200) | xmlish | wrapped)
@example(b"")
@example(b"<methodCall><methodName>x</methodName><params><param>" + b"<value><array><data>" * 5000)
@example(
    b"<methodCall><methodName>x</methodName><params><param><value><int>" + b"9" * 5000 + b"</int></value>"
)
@example(b"<methodCall><methodName></methodName></methodCall>")
@example(b"<methodCall><params></params></methodCall>")
@example("<methodCall><methodName>é</methodName></methodCall>".encode("latin-1"))
def test_any_bytes(body: bytes) -> None:
    try:
        method, params = codec.parse_call(body)
    except BadRequest:
        pass
    else:
        assert isinstance(method, str)
        assert isinstance(params, list)
    ask(body)


@given(st.data())
def test_any_arguments(data: st.DataObject) -> None:
    with DomainStore(":memory:") as store:
        names = sorted({*Host(store).rpc.methods, *NOT_BUILT, "nothing"})
    bodies = []
    for _ in range(data.draw(st.integers(1, 5))):
        method = data.draw(st.sampled_from(names))
        params = tuple(data.draw(st.lists(values | configs, max_size=4)))
        bodies.append(xmlrpc.client.dumps(params, method, allow_none=True).encode())
    ask(*bodies)


@given(configs)
def test_any_configuration(config: list[Any]) -> None:
    body = xmlrpc.client.dumps((config,), "xend.domain.create", allow_none=True).encode()
    listing = xmlrpc.client.dumps((True, "all", True), "xend.domains_with_state").encode()
    (made, listed), _ = ask(body, listing)
    if isinstance(made, xmlrpc.client.Fault):
        assert made.faultCode == 2
        assert len(listed) == 1
    else:
        assert made[0] == "domain"
        assert len(listed) == 2
