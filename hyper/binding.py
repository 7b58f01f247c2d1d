"""The core as Python sees it. The only file that sees `ffi` and `lib` of `hyper._core`.

`Core` is what machine.py needs; `load()` gives the real one. Tests bring their own. Results keep the core's
convention: 0 or positive, or -XEN_E*; machine.py makes exceptions of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NewType, Protocol

from hyper.public.types import ProcessDomain

HvHandle = NewType("HvHandle", object)
"""A machine: hv_t *."""
ConnHandle = NewType("ConnHandle", object)
"""A process of a process domain: hv_conn_t *."""


@dataclass(frozen=True)
class CoreConfig:
    """struct hv_config."""

    nr_pcpus: int
    memory_bytes: int
    console_bytes: int
    command_line: str
    scheduler: str


class Core(Protocol):
    """The functions of core/hv.h."""

    def create(self, config: CoreConfig) -> tuple[int, HvHandle | None]: ...
    def start(self, hv: HvHandle) -> int: ...
    def destroy(self, hv: HvHandle) -> None: ...
    def statistics(self, hv: HvHandle) -> dict[str, int]: ...
    def engine_statistics(self, hv: HvHandle, start: int) -> tuple[int, dict[str, int]]: ...
    def bank_fd(self, hv: HvHandle) -> int: ...
    def bank_bytes(self, hv: HvHandle) -> int: ...
    def max_mfn(self, hv: HvHandle) -> int: ...
    def adopt(self, hv: HvHandle, domid: int, bank_bytes: int) -> tuple[int, ProcessDomain | None]: ...
    def process_bank(self, hv: HvHandle, domid: int) -> tuple[int, ProcessDomain | None, int]:
        """(result, start, the bank's memfd); the descriptor is the caller's."""
        ...

    def console_write(self, hv: HvHandle, text: bytes) -> None: ...
    def conn_create(self, hv: HvHandle, domid: int) -> tuple[int, ConnHandle | None]: ...
    def conn_end(self, conn: ConnHandle) -> int: ...
    def conn_destroy(self, conn: ConnHandle) -> None: ...
    def conn_set_arena(self, conn: ConnHandle, fd: int, nbytes: int) -> int: ...
    def conn_make_arena(self, conn: ConnHandle, nbytes: int) -> tuple[int, int]:
        """(result, memfd); the descriptor is the caller's."""
        ...

    def conn_hangup_fd(self, conn: ConnHandle) -> int: ...
    def conn_hypercall(self, conn: ConnHandle, nr: int, args: tuple[int, ...]) -> int: ...
    def conn_port_fds(self, conn: ConnHandle, port: int) -> tuple[int, int, int]:
        """(result, upcall, doorbell)"""
        ...

    def conn_open_ring(self, conn: ConnHandle) -> tuple[int, int, int]:
        """(result, memfd, doorbell); the descriptors are the caller's."""
        ...


class _Lib(Protocol):
    """hv_* as cffi offers them; pointers are opaque."""

    def hv_create(self, config: Any, out: Any) -> int: ...
    def hv_start(self, hv: Any) -> int: ...
    def hv_destroy(self, hv: Any) -> None: ...
    def hv_get_statistics(self, hv: Any, out: Any) -> None: ...
    def hv_get_engine_statistics(self, hv: Any, start: int, out: Any) -> int: ...
    def hv_engine_exit_name(self, index: int) -> Any: ...
    def hv_bank_fd(self, hv: Any) -> int: ...
    def hv_bank_bytes(self, hv: Any) -> int: ...
    def hv_max_mfn(self, hv: Any) -> int: ...
    def hv_adopt(self, hv: Any, domid: int, bank_bytes: int, out: Any) -> int: ...
    def hv_process_bank(self, hv: Any, domid: int, out: Any, fd: Any) -> int: ...
    def hv_console_write(self, hv: Any, text: bytes, nbytes: int) -> None: ...
    def hv_conn_create(self, hv: Any, domid: int, out: Any) -> int: ...
    def hv_conn_end(self, conn: Any) -> int: ...
    def hv_conn_destroy(self, conn: Any) -> None: ...
    def hv_conn_set_arena(self, conn: Any, fd: int, nbytes: int) -> int: ...
    def hv_conn_make_arena(self, conn: Any, nbytes: int, fd: Any) -> int: ...
    def hv_conn_hangup_fd(self, conn: Any) -> int: ...
    def hv_conn_hypercall(self, conn: Any, nr: int, args: Any) -> int: ...
    def hv_conn_port_fds(self, conn: Any, port: int, upcall: Any, doorbell: Any) -> int: ...
    def hv_conn_open_ring(self, conn: Any, memfd: Any, doorbell: Any) -> int: ...


def load() -> Core:
    """The real core.

    Raises: ImportError when the extension is not built.
    """
    from hyper._core import ffi, lib

    return _CffiCore(ffi, lib)


class _CffiCore:
    def __init__(self, ffi: Any, lib: _Lib) -> None:
        self._ffi = ffi
        self._lib = lib

    def create(self, config: CoreConfig) -> tuple[int, HvHandle | None]:
        command_line = self._ffi.new("char[]", config.command_line.encode())
        scheduler = self._ffi.new("char[]", config.scheduler.encode())
        c_config = self._ffi.new(
            "struct hv_config *",
            {
                "nr_pcpus": config.nr_pcpus,
                "console_bytes": config.console_bytes,
                "memory_bytes": config.memory_bytes,
                "command_line": command_line,
                "scheduler": scheduler,
            },
        )
        out = self._ffi.new("hv_t **")
        ret = self._lib.hv_create(c_config, out)
        return ret, HvHandle(out[0]) if ret >= 0 else None

    def start(self, hv: HvHandle) -> int:
        return self._lib.hv_start(hv)

    def destroy(self, hv: HvHandle) -> None:
        self._lib.hv_destroy(hv)

    def statistics(self, hv: HvHandle) -> dict[str, int]:
        out = self._ffi.new("struct hv_statistics *")
        self._lib.hv_get_statistics(hv, out)
        return {name: getattr(out, name) for name, _ in self._ffi.typeof("struct hv_statistics").fields}

    def engine_statistics(self, hv: HvHandle, start: int) -> tuple[int, dict[str, int]]:
        out = self._ffi.new("struct hv_engine_statistics *")
        domid = self._lib.hv_get_engine_statistics(hv, start, out)
        fields = self._ffi.typeof("struct hv_engine_statistics").fields
        names = [name for name, _ in fields if name != "exits"]
        found = {name: getattr(out, name) for name in names}
        for index, count in enumerate(out.exits):
            name = self._ffi.string(self._lib.hv_engine_exit_name(index)).decode()
            found[f"exits.{name.replace(' ', '_')}"] = count
        return domid, found

    def bank_fd(self, hv: HvHandle) -> int:
        return self._lib.hv_bank_fd(hv)

    def bank_bytes(self, hv: HvHandle) -> int:
        return self._lib.hv_bank_bytes(hv)

    def max_mfn(self, hv: HvHandle) -> int:
        return self._lib.hv_max_mfn(hv)

    def adopt(self, hv: HvHandle, domid: int, bank_bytes: int) -> tuple[int, ProcessDomain | None]:
        out = self._ffi.new("struct hv_process *")
        ret = self._lib.hv_adopt(hv, domid, bank_bytes, out)
        return ret, self._start(out) if ret >= 0 else None

    def process_bank(self, hv: HvHandle, domid: int) -> tuple[int, ProcessDomain | None, int]:
        out = self._ffi.new("struct hv_process *")
        fd = self._ffi.new("int *", -1)
        ret = self._lib.hv_process_bank(hv, domid, out, fd)
        return (ret, self._start(out), fd[0]) if ret >= 0 else (ret, None, -1)

    def _start(self, out: Any) -> ProcessDomain:
        names = self._ffi.typeof("struct hv_process").fields
        return ProcessDomain(**{name: getattr(out, name) for name, _ in names})

    def console_write(self, hv: HvHandle, text: bytes) -> None:
        self._lib.hv_console_write(hv, text, len(text))

    def conn_create(self, hv: HvHandle, domid: int) -> tuple[int, ConnHandle | None]:
        out = self._ffi.new("hv_conn_t **")
        ret = self._lib.hv_conn_create(hv, domid, out)
        return ret, ConnHandle(out[0]) if ret >= 0 else None

    def conn_end(self, conn: ConnHandle) -> int:
        return self._lib.hv_conn_end(conn)

    def conn_destroy(self, conn: ConnHandle) -> None:
        self._lib.hv_conn_destroy(conn)

    def conn_set_arena(self, conn: ConnHandle, fd: int, nbytes: int) -> int:
        return self._lib.hv_conn_set_arena(conn, fd, nbytes)

    def conn_make_arena(self, conn: ConnHandle, nbytes: int) -> tuple[int, int]:
        fd = self._ffi.new("int *", -1)
        ret = self._lib.hv_conn_make_arena(conn, nbytes, fd)
        return ret, fd[0]

    def conn_hangup_fd(self, conn: ConnHandle) -> int:
        return self._lib.hv_conn_hangup_fd(conn)

    def conn_hypercall(self, conn: ConnHandle, nr: int, args: tuple[int, ...]) -> int:
        return self._lib.hv_conn_hypercall(conn, nr, self._ffi.new("uint64_t[6]", args))

    def conn_port_fds(self, conn: ConnHandle, port: int) -> tuple[int, int, int]:
        fds = self._ffi.new("int[2]", (-1, -1))
        ret = self._lib.hv_conn_port_fds(conn, port, fds, fds + 1)
        return ret, fds[0], fds[1]

    def conn_open_ring(self, conn: ConnHandle) -> tuple[int, int, int]:
        fds = self._ffi.new("int[2]", (-1, -1))
        ret = self._lib.hv_conn_open_ring(conn, fds, fds + 1)
        return ret, fds[0], fds[1]
