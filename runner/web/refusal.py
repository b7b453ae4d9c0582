"""What a client is told whose request is not served: always `{"error": {type, message, retryable, details}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from runner.masking import Mask
from runner.message import encode_json
from runner.records import Error

RETRY_AFTER = {"Retry-After": "1"}
_STATUS = {
    "invalid_input": 422,
    "rate_limited": 429,
    "internal": 500,
    "no_handler": 503,
    "timeout": 504,
}
"""Of a failed command, by its error's type; any other is 409."""
_OF_ROUTING = {404: "not_found", 405: "method_not_allowed"}


class Refusal(Exception):
    """The request is not served; its client is told why."""

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        *,
        retryable: bool = False,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = Error(type=type, message=message, retryable=retryable, details=dict(details or {}))
        self.headers = headers

    def masked(self, mask: Mask) -> Refusal:
        """The same without the secrets that its texts may hold."""
        error = self.error
        return Refusal(
            self.status,
            mask.text(error.type),
            mask.text(error.message),
            retryable=error.retryable,
            details=mask.value(error.details),
            headers=self.headers,
        )

    def response(self) -> Response:
        """As it goes to the client."""
        error = self.error
        shown = {
            "type": error.type,
            "message": error.message.encode("utf-8", "replace").decode(),
            "retryable": error.retryable,
            "details": error.details,
        }
        return json_response({"error": shown}, self.status, self.headers)

    @classmethod
    def of_command(cls, error: Error) -> Refusal:
        """For a command that failed, or that nobody answered."""
        status = _STATUS.get(error.type, 409)
        return cls(
            status,
            error.type,
            error.message,
            retryable=error.retryable,
            details=error.details,
            headers=RETRY_AFTER if status in (429, 503) else None,
        )

    @classmethod
    def unavailable(cls, message: str) -> Refusal:
        """For what will pass: the broker or the store is away, or this process is about to stop."""
        return cls(503, "unavailable", message, retryable=True, headers=RETRY_AFTER)


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON value as response."""
    return Response(encode_json(value), status, headers=headers, media_type="application/json")


async def of_routing(request: Request, error: Exception) -> Response:
    """For a path or a method that no endpoint has."""
    assert isinstance(error, HTTPException)
    kind = _OF_ROUTING.get(error.status_code, "bad_request")
    message = f"{request.method} {request.scope['path']}: {error.detail.lower()}"
    return Refusal(error.status_code, kind, message, headers=error.headers).response()
