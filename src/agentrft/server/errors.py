"""Every failure as the contract's body: {"error": {"message", "type", "param", "code"}}.

What the caller did wrong is said in full; what went wrong inside is logged under the request id.
"""

import http
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from agentrft.core.errors import AgentRFTError, ConfigError, SamplerError, UserError
from agentrft.inference.chat import ChatBusyError
from agentrft.server.wire import Reply
from agentrft.store.errors import ConflictError, NotFoundError, TooLargeError

_LOG = logging.getLogger("agentrft.server")


class Failure(Reply):
    """What is wrong, which parameter, and a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class FailureReply(Reply):
    """Body of every reply that is no success."""

    error: Failure


class ApiError(HTTPException, AgentRFTError):
    """A refusal, ready to be sent."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        HTTPException.__init__(self, status, message, dict(headers) if headers else None)
        self.type = type or _type_of(status)
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The contract's error object."""
        return {
            "error": {
                "message": self.detail,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def reply(self) -> JSONResponse:
        """Return the response that says it."""
        return JSONResponse(self.body, self.status_code, self.headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The caller can mend it."""
    return ApiError(400, message, param=param, code=code)


def wrong_grader(error: ConfigError, path: str = "grader") -> ApiError:
    """Return what the caller is told of the grader object at `path` that cannot be built."""
    named = re.match(rf"{re.escape(path)}[\w.\[\]-]*", str(error))
    return bad_request(str(error), named[0].rstrip(".") if named else path, "invalid_grader")


def not_found(message: str, param: str | None = None, code: str = "not_found") -> ApiError:
    """It does not exist, or not for this caller."""
    return ApiError(404, message, param=param, code=code)


def internal(request_id: str) -> ApiError:
    """Say that it is our fault, and nothing else."""
    return ApiError(
        500, f"The server had an error; its log has the cause under request id {request_id}."
    )


def as_api_error(error: AgentRFTError, request_id: str) -> ApiError:
    """Return what the caller may know of one of our errors."""
    match error:
        case ApiError():
            return error
        case TooLargeError():
            return ApiError(413, str(error), code="too_large")
        case NotFoundError():
            return not_found(str(error))
        case ConflictError():
            return ApiError(409, str(error), code="conflict")
        case UserError():
            return bad_request(str(error))
        case ChatBusyError():
            return ApiError(429, str(error), code="model_busy", headers={"retry-after": "2"})
        case SamplerError():
            return ApiError(503, str(error), code="model_unavailable", headers={"retry-after": "2"})
        case _:
            _LOG.error("request %s failed", request_id, exc_info=error)
            return internal(request_id)


def explain(problem: Mapping[str, Any], body: object = None) -> ApiError:
    """Return one complaint of pydantic about a body, or about the query, in the contract's words."""
    location = cast(Sequence[int | str], problem["loc"])
    given = problem.get("input")
    kind = str(problem["type"])
    if location and location[0] == "body":
        param = dotted(location[1:], body, last_is_missing=kind == "missing")
    else:
        param = ".".join(map(str, location[1:]))
    if not param:
        return bad_request(
            "The body must be a JSON object with header 'content-type: application/json'."
        )
    if kind == "missing":
        return bad_request(
            f"Missing required parameter: '{param}'.", param, "missing_required_parameter"
        )
    if kind == "extra_forbidden":
        return bad_request(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    if kind in _EXPECTED:
        return bad_request(
            f"Invalid type for '{param}': expected {_EXPECTED[kind]}, but got {_kind(given)} instead.",
            param,
            "invalid_type",
        )
    message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return bad_request(f"Invalid value for '{param}': {message}.", param, "invalid_value")


def dotted(location: Sequence[int | str], body: object, *, last_is_missing: bool) -> str:
    """Return `graders.input`, `tools[0].name`.

    What the body does not have there is pydantic's name of a union's member and left out.
    """
    path = ""
    for number, part in enumerate(location, 1):
        if isinstance(part, int):
            path += f"[{part}]"
            body = cast(list[Any], body)[part] if isinstance(body, list) else None
        elif isinstance(body, dict) and (
            part in body or (last_is_missing and number == len(location))
        ):
            path += f".{part}" if path else part
            body = cast(dict[str, Any], body).get(part)
    return path


def install(app: FastAPI) -> None:
    """Answer every failure in the contract's form."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(AgentRFTError, _ours)


async def _http(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ApiError):
        return error.reply()
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            message = f"Invalid URL ({request.method} {request.url.path})"
        case 405:
            message = f"Not allowed to {request.method} on {request.url.path}"
        case _:
            message = str(error.detail)
    code = {404: "unknown_url", 405: "method_not_supported"}.get(error.status_code)
    return ApiError(error.status_code, message, code=code, headers=error.headers).reply()


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return explain(error.errors()[0], error.body).reply()


async def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AgentRFTError)
    return as_api_error(error, str(request.state.request_id)).reply()


def _type_of(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 429:
            return "rate_limit_error"
        case _ if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            return "server_error"
        case _:
            return "invalid_request_error"


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


_EXPECTED = {
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "mapping_type": "an object",
    "list_type": "an array",
    "string_type": "a string",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "a boolean",
    "bool_parsing": "a boolean",
}
