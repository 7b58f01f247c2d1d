"""Refusals of the hypervisor, as exceptions.

`XenError` is not an OSError on purpose: a host socket failing and a hypercall being refused must not be
caught by the same line. `GrantError` is a second table (GNTST_*) and is never mixed with errno.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class XenErrno(IntEnum):
    """Xen's error numbers. A test holds them against public/errno.h."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EINTR = 4
    EIO = 5
    ENXIO = 6
    E2BIG = 7
    ENOEXEC = 8
    EBADF = 9
    ECHILD = 10
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EXDEV = 18
    ENODEV = 19
    ENOTDIR = 20
    EISDIR = 21
    EINVAL = 22
    ENFILE = 23
    EMFILE = 24
    ENOSPC = 28
    EROFS = 30
    EMLINK = 31
    EDOM = 33
    ERANGE = 34
    EDEADLK = 35
    ENAMETOOLONG = 36
    ENOLCK = 37
    ENOSYS = 38
    ENOTEMPTY = 39
    ENODATA = 61
    ETIME = 62
    EBADMSG = 74
    EOVERFLOW = 75
    EILSEQ = 84
    ERESTART = 85
    ENOTSOCK = 88
    EMSGSIZE = 90
    EOPNOTSUPP = 95
    EADDRINUSE = 98
    EADDRNOTAVAIL = 99
    ENOBUFS = 105
    EISCONN = 106
    ENOTCONN = 107
    ETIMEDOUT = 110
    ECONNREFUSED = 111


class XenError(Exception):
    """A request was refused. `errno` is Xen's number; `context` says what was asked and which limit was
    met.
    """

    leaf_errno: ClassVar[XenErrno | None] = None

    def __init__(self, op: str, errno: int | None = None, **context: object) -> None:
        number = errno if errno is not None else self.leaf_errno
        if number is None:
            raise TypeError("XenError needs an errno; or raise one of its leaves")
        self.op = op
        self.errno = number
        self.context = context
        super().__init__(op, number, context)

    @property
    def name(self) -> str:
        """The errno's name, for example "EBUSY"; "E<number>" when Xen has none."""
        try:
            return XenErrno(self.errno).name
        except ValueError:
            return f"E{self.errno}"

    def __str__(self) -> str:
        details = ", ".join(f"{key}={value}" for key, value in self.context.items())
        return f"{self.op}: {self.name}" + (f" ({details})" if details else "")


class NotPrivileged(XenError):
    leaf_errno = XenErrno.EPERM


class NoSuchNode(XenError):
    leaf_errno = XenErrno.ENOENT


class NoSuchDomain(XenError):
    leaf_errno = XenErrno.ESRCH


class TooBig(XenError):
    leaf_errno = XenErrno.E2BIG


class TryAgain(XenError):
    leaf_errno = XenErrno.EAGAIN


class OutOfFrames(XenError):
    leaf_errno = XenErrno.ENOMEM


class AccessDenied(XenError):
    leaf_errno = XenErrno.EACCES


class BadGuestAddress(XenError):
    leaf_errno = XenErrno.EFAULT


class Busy(XenError):
    leaf_errno = XenErrno.EBUSY


class AlreadyExists(XenError):
    leaf_errno = XenErrno.EEXIST


class BadArgument(XenError):
    leaf_errno = XenErrno.EINVAL


class NoFreeSlot(XenError):
    leaf_errno = XenErrno.ENOSPC


class OutOfRange(XenError):
    leaf_errno = XenErrno.ERANGE


class NoSuchOp(XenError):
    leaf_errno = XenErrno.ENOSYS


class NotBuilt(XenError):
    leaf_errno = XenErrno.EOPNOTSUPP


_LEAVES: dict[int, type[XenError]] = {
    leaf.leaf_errno: leaf for leaf in XenError.__subclasses__() if leaf.leaf_errno is not None
}


def xen_error(op: str, errno: int, **context: object) -> XenError:
    """The leaf for `errno` (positive), or a plain XenError where there is none."""
    return _LEAVES.get(errno, XenError)(op, errno, **context)


class GrantError(Exception):
    """A grant operation was refused. `status` is a GNTST_* value (negative)."""

    def __init__(self, op: str, status: int, **context: object) -> None:
        self.op = op
        self.status = status
        self.context = context
        super().__init__(op, status, context)

    def __str__(self) -> str:
        details = ", ".join(f"{key}={value}" for key, value in self.context.items())
        reason = GRANT_STATUS.get(self.status, str(self.status))
        return f"{self.op}: {reason}" + (f" ({details})" if details else "")


GRANT_STATUS = {
    -1: "general error",
    -2: "unrecognised domain id",
    -3: "unrecognised or inappropriate grant reference",
    -4: "unrecognised or inappropriate mapping handle",
    -5: "inappropriate virtual address to map",
    -6: "inappropriate device address to unmap",
    -7: "no spare grant mapping",
    -8: "permission denied",
    -9: "the page is not good enough",
    -10: "copy arguments cross a page boundary",
    -11: "the page address is too big",
    -12: "operation not done; try again",
    -13: "out of space",
}


class HypervisorGone(Exception):
    """The connection to hyper is lost: its process ended, or it refused us. Nothing of this host works any
    more.
    """


def leaves(error: BaseException) -> list[BaseException]:
    """What an exception group holds, however deep; an exception alone is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]
