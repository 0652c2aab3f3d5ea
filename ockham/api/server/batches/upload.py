"""Reading an uploaded file: a form of several parts, whose file goes to the disk as it comes."""

from __future__ import annotations

import asyncio
import os
from typing import Any
from urllib.parse import urlsplit

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from ockham.api.server.batches.store import Store, StoredFile, now_s
from ockham.api.server.errors import HttpError
from ockham.api.server.settings import ServerSettings
from ockham.core.errors import InvalidRequest, OckhamError, RequestTimeout
from ockham.core.numbers import shown

MOST_BYTES = 200 << 20
"""Of one file, as at OpenAI."""
_MOST_FIELD_BYTES = 4096
_MOST_PARTS = 16
_BUFFER_BYTES = 1 << 20
_FORM_BYTES = 64 << 10
"""What a form may hold beside its file."""


async def read_upload(http: Request, store: Store, settings: ServerSettings, owner: str) -> Any:
    """The file of a form. Raises `InvalidRequest` or `HttpError`; nothing of it is left then."""
    check_page(http, settings)
    kind, options = parse_options_header(http.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise HttpError(415, "The Content-Type must be multipart/form-data with a boundary.")
    length = http.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_BYTES + _FORM_BYTES:
        raise _too_large()
    with store.reserving(int(length) if length.isdecimal() else MOST_BYTES):
        file_id, descriptor = store.create()
        form = _Form(descriptor, options[b"boundary"])
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                await _receive(http, form, settings.body_timeout_s)
            file = form.file(file_id, owner)
            os.close(descriptor)
            descriptor = -1
            await asyncio.to_thread(store.add, file)
        except TimeoutError as error:
            os.close(descriptor)
            store.discard(file_id)
            raise RequestTimeout(
                f"The file did not arrive within {settings.request_timeout_s:g} s; split it, or "
                "start the server with a longer --request-timeout."
            ) from error
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            store.discard(file_id)
            raise
    return file


def check_page(http: Request, settings: ServerSettings) -> None:
    """Raise `HttpError` 403 for a form from a page of another origin than those that may call:
    browsers send forms to any address without asking first."""
    origin = http.headers.get("origin")
    if origin is None or "*" in settings.cors_origins or origin in settings.cors_origins:
        return
    if urlsplit(origin).netloc != http.headers.get("host"):
        raise HttpError(403, f"Pages of {shown(origin)} may not upload here (--cors-origin).")


async def _receive(http: Request, form: _Form, timeout_s: float) -> None:
    received = 0
    try:
        stream = http.stream()
        while True:
            # Of each part, not of the whole: a large file takes its time.
            async with asyncio.timeout(timeout_s):
                part = await anext(stream, None)
            if part is None:
                break
            received += len(part)
            if received > MOST_BYTES + _FORM_BYTES:
                raise _too_large()
            form.feed(part)
            if len(form.buffer) >= _BUFFER_BYTES:
                await asyncio.to_thread(form.flush)
        await asyncio.to_thread(form.finish)
    except TimeoutError as error:
        raise RequestTimeout(
            f"Nothing of the file came for {timeout_s:g} s; send it again."
        ) from error
    except ClientDisconnect as error:
        raise HttpError(499, "The client went away.") from error
    except OSError as error:
        raise OckhamError(f"The file cannot be written ({error.strerror}).") from error


def _too_large() -> HttpError:
    return HttpError(413, f"The file is larger than {MOST_BYTES} bytes; split it.")


class _Form:
    """The parts of a form as they come."""

    def __init__(self, descriptor: int, boundary: bytes) -> None:
        self._descriptor = descriptor
        self.buffer = bytearray()
        self._bytes = self._parts = 0
        self._fields: dict[str, bytearray] = {}
        self._filename: str | None = None
        self._name = ""
        self._in_file = False
        self._header, self._value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_body,
                "on_part_data": self._take,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Raises `InvalidRequest` for what is no form."""
        try:
            self._parser.write(data)
        except OckhamError:
            raise
        except Exception as error:  # the library has several kinds
            raise InvalidRequest(f"The form cannot be read: {error}.") from error

    def flush(self) -> None:
        """Write what has come of the file."""
        view = memoryview(self.buffer)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.buffer = bytearray()

    def finish(self) -> None:
        self.flush()
        os.fsync(self._descriptor)

    def file(self, file_id: str, owner: str) -> StoredFile:
        """What the form says. Raises `InvalidRequest`."""
        if not self._ended:
            raise InvalidRequest("The form ends before its last boundary; send it again.")
        purpose = self._fields.pop("purpose", bytearray()).decode(errors="replace")
        if purpose != "batch":
            raise InvalidRequest(
                f"purpose must be 'batch', got {shown(purpose)}: files are for batches here.",
                "purpose",
            )
        if self._fields:
            name = next(iter(self._fields))
            raise InvalidRequest(f"{shown(name)} is not supported; leave it out.", name[:200])
        if self._filename is None:
            raise InvalidRequest("file is required and is missing.", "file")
        return StoredFile(
            id=file_id,
            bytes=self._bytes,
            created_at=now_s(),
            filename=self._filename[:255],
            purpose=purpose,
            owner=owner,
        )

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise InvalidRequest(f"The form has more than {_MOST_PARTS} parts.")
        self._headers = {}

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _begin_body(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._in_file = self._name == "file"
        if self._in_file:
            if self._filename is not None:
                raise InvalidRequest("The form has two files; send one.", "file")
            self._filename = options.get(b"filename", b"upload").decode(errors="replace")
        else:
            self._fields[self._name] = bytearray()

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._bytes += end - start
            self.buffer += data[start:end]
            return
        field = self._fields[self._name]
        field += data[start:end]
        if len(field) > _MOST_FIELD_BYTES:
            raise InvalidRequest(
                f"{shown(self._name)} is longer than {_MOST_FIELD_BYTES} bytes.", self._name[:200]
            )

    def _end(self) -> None:
        self._ended = True
