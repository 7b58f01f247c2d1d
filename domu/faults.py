"""Faults on purpose, the same in every run: what a driver does wrong, and when.

    disk.faults.at(3, drop)                               # the third request never reaches the ring
    disk.faults.every(10, twice)                          # each tenth goes in twice
    disk.faults.at(5, patch(offset=0, data=b"\\xff"))      # the fifth names an operation that is none
    disk.faults.at(7, lambda raw: [other, raw])           # anything: what goes into the ring instead

A fault is a function from what was to be sent to what is sent: no, one, or several items. Counting begins
with 1 when the driver begins. Rings count raw requests (`bytes`, as they lie in the ring), handshakes count
nodes (`Node`, a name and a value). A request that the backend answers wrongly, or not at all, fails or waits
like any other: use `trio.move_on_after`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
Fault = Callable[[T], Iterable[T]]


class Node(NamedTuple):
    """An entry that a frontend is about to write into its folder of xenstore."""

    name: str
    value: str


class Faults(Generic[T]):
    """What is to go wrong at one place. Later rules come first; without one, all is as it should be."""

    def __init__(self) -> None:
        self.count = 0
        """Items that have passed."""
        self._rules: list[tuple[Callable[[int], bool], Fault[T]]] = []

    def at(self, number: int, fault: Fault[T]) -> None:
        """Item `number`, from 1 on, once."""
        self._rules.insert(0, (lambda count: count == number, fault))

    def every(self, step: int, fault: Fault[T]) -> None:
        """Items `step`, 2 * `step`, ..."""
        self._rules.insert(0, (lambda count: count % step == 0, fault))

    def always(self, fault: Fault[T]) -> None:
        self.every(1, fault)

    def clear(self) -> None:
        """No more faults; counting goes on."""
        self._rules.clear()

    def apply(self, item: T) -> list[T]:
        """What is to be sent instead of `item`. For drivers."""
        self.count += 1
        for when, fault in self._rules:
            if when(self.count):
                return list(fault(item))
        return [item]


def drop(item: T) -> list[T]:
    """Nothing is sent."""
    return []


def twice(item: T) -> list[T]:
    return [item, item]


def patch(offset: int, data: bytes) -> Fault[bytes]:
    """Overwrites bytes of a raw request."""

    def fault(raw: bytes) -> list[bytes]:
        return [raw[:offset] + data + raw[offset + len(data) :]]

    return fault


def garbage(seed: int) -> Fault[bytes]:
    """Random bytes of the same length, another row for each request, the same row for the same seed."""
    source = random.Random(seed)
    return lambda raw: [source.randbytes(len(raw))]


def say(value: str) -> Fault[Node]:
    """Another value for a node."""
    return lambda node: [Node(node.name, value)]


def only(name: str, fault: Fault[Node]) -> Fault[Node]:
    """`fault` for nodes of this name, the others as they are."""
    return lambda node: fault(node) if node.name == name else [node]
