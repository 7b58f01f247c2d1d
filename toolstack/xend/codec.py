"""XML-RPC bodies to calls, results to bodies. Pure.

Any bytes give a call or BadRequest: no entity, no document type, no nesting deeper than an s-expression may
have, no value that JSON would not know.
"""

from __future__ import annotations

import xmlrpc.client
from typing import Any

from defusedxml.common import DefusedXmlException
from defusedxml.xmlrpc import DefusedExpatParser

from toolstack.sxp import MAX_DEPTH
from toolstack.xend.errors import BadRequest
from toolstack.xmlrpc import carried_by_xml, escape_result

_MAX_TAGS = 3 * MAX_DEPTH
"""Depth of tags: each list is a value, an array and its data."""


class _Bounded(xmlrpc.client.Unmarshaller):
    """Refuses deep nesting before it becomes deep lists."""

    depth = 0

    def start(self, tag: str, attrs: dict[str, str]) -> None:
        self.depth += 1
        if self.depth > _MAX_TAGS:
            raise BadRequest("the request is nested too deeply")
        super().start(tag, attrs)

    def end(self, tag: str) -> None:
        self.depth -= 1
        super().end(tag)


def parse_call(body: bytes) -> tuple[str, list[Any]]:
    """The method and the parameters of a call. Raises: BadRequest."""
    target = _Bounded(use_builtin_types=True)
    try:
        parser = DefusedExpatParser(target, forbid_dtd=True)
        parser.feed(body)
        parser.close()
        params, method = list(target.close()), target.getmethodname()
    except BadRequest:
        raise
    except DefusedXmlException:
        raise BadRequest("the request declares a document type or an entity") from None
    except Exception as error:  # hostile bytes: the parser below fails in many ways
        text = str(error) or type(error).__name__
        raise BadRequest(f"the request is not XML-RPC: {text[:200]}") from None
    if not isinstance(method, str) or not method:
        raise BadRequest("the request names no method")
    _check(params)
    return method, params


def _check(value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _check(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise BadRequest("the names of a struct must be strings")
            _check(item)
    elif value is not None and not isinstance(value, (str, int, float)):
        raise BadRequest(f"the request holds a {type(value).__name__}, which no method takes")


def _sendable(value: Any) -> Any:
    """The value with nothing in it that XML-RPC cannot carry."""
    if isinstance(value, str):
        if value.isprintable():
            return value
        return "".join(char if carried_by_xml(char) else "\ufffd" for char in value)
    if isinstance(value, (list, tuple)):
        return [_sendable(item) for item in value]
    if isinstance(value, dict):
        return {_sendable(key): _sendable(item) for key, item in value.items()}
    if isinstance(value, int) and not -(1 << 31) <= value < 1 << 31:
        return str(value)
    return value


def dump_result(value: Any) -> bytes:
    """The body of a reply. A result that is one string is escaped, see toolstack.xmlrpc."""
    value = escape_result(value) if isinstance(value, str) else _sendable(value)
    return xmlrpc.client.dumps((value,), methodresponse=True, allow_none=True).encode()


def dump_fault(code: int, text: str) -> bytes:
    """The body of a refusal."""
    return xmlrpc.client.dumps(xmlrpc.client.Fault(code, _sendable(text)), methodresponse=True).encode()
