"""Xen's structures and constants, as the public C headers say them. The only place that sees the kit's ffi
and lib.

    lib.XEN_DOMCTL_createdomain       a constant of hyper/public/*.h (any object-like macro or enum of a cffi
    region) nr.domctl                         __HYPERVISOR_domctl. Not through lib: inside a class Python
    mangles a name that
                                      begins with two underscores.
    sizeof("struct xen_domctl")       bytes
    struct("struct xen_domctl", view) a pointer into `view`: `op.cmd = lib.XEN_DOMCTL_pausedomain`,
    `op.u.sched_op` array("uint64_t", view)           an array over `view`, as long as fits

A request in an arena buffer, from start to end:

    with hyp.arena.new("struct xen_domctl", cmd=abi.lib.XEN_DOMCTL_pausedomain, domain=domid,
                       interface_version=abi.lib.XEN_DOMCTL_INTERFACE_VERSION) as buf:
        await hyp.hypercall(abi.nr.domctl, buf.addr)
        answer = buf.struct.u

A guest handle inside a structure is an integer: the `addr` of another buffer. Strings (`#define X "text"`)
and function-like macros are not here.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hyper.guest._guest import ffi as _ffi
from hyper.guest._guest import lib as _lib

ffi: Any = _ffi
lib: Any = _lib

nr = SimpleNamespace(
    **{
        name.removeprefix("__HYPERVISOR_"): getattr(lib, name)
        for name in dir(lib)
        if name.startswith("__HYPERVISOR_")
    }
)

HYPERCALL_NAMES: dict[int, str] = {number: name for name, number in vars(nr).items()}


def sizeof(ctype: str) -> int:
    """Bytes of a C type."""
    size: int = ffi.sizeof(ctype)
    return size


def struct(ctype: str, view: memoryview | bytearray) -> Any:
    """A `ctype *` into `view`, which it keeps alive.

    Raises: ValueError when `view` is too small; BufferError when it is read-only.
    """
    if len(view) < sizeof(ctype):
        raise ValueError(f"{ctype} needs {sizeof(ctype)} bytes, not {len(view)}")
    return _pointer(f"{ctype} *", view)


def _pointer(ctype: str, view: memoryview | bytearray) -> Any:
    # Not a from_buffer object: one that lies in a reference cycle with its memoryview crashes CPython 3.11's
    # collector. The destructor holds the view instead.
    with ffi.from_buffer(view, require_writable=True) as raw:
        address = int(ffi.cast("uintptr_t", raw))
    return ffi.gc(ffi.cast(ctype, address), lambda _, keep=view: None)


def array_at(ctype: str, view: memoryview | bytearray) -> Any:
    """A pointer to the first of the `ctype`s in `view`, which it keeps alive. Not bounds-checked.

    Raises: BufferError when `view` is read-only.
    """
    return _pointer(f"{ctype} *", view)


def array(ctype: str, view: bytearray) -> Any:
    """A `ctype[]` over `view`, which it keeps alive; as long as fits. For a memoryview see _pointer.

    Raises: BufferError when `view` is read-only.
    """
    return ffi.from_buffer(f"{ctype}[]", view, require_writable=True)


def to_bytes(pointer: Any) -> bytes:
    """A copy of what `pointer` points to."""
    return bytes(ffi.buffer(pointer))
