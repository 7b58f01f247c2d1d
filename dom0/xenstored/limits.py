"""What one unprivileged domain may use: Xen's defaults. Dom0 has no limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """As in Xen, watches and transactions are refused when there are already *more* than the limit."""

    nodes: int = 1000
    node_size: int = 2048
    """Bytes of value, permissions and names of children; a node must stay below."""
    permissions: int = 5
    watches: int = 128
    transactions: int = 10
    transaction_nodes: int = 1024
