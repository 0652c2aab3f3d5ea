"""`/v1/files` and `/v1/batches`: requests sent as a file and answered in their own time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from ockham.api.batch_lines import URLS
from ockham.api.server.batches.runner import Batches, new_batch
from ockham.api.server.batches.store import MOST_BATCHES, RUNNING, Batch, Status, StoredFile
from ockham.api.server.caller import caller_of
from ockham.api.server.errors import HttpError
from ockham.api.server.house import house
from ockham.api.server.openapi.described import describes
from ockham.api.server.serving import read
from ockham.core.errors import InvalidRequest
from ockham.core.numbers import shown

__all__ = ["ROUTES", "Batches"]

MOST_LISTED = 10_000
MOST_METADATA = 16

T = TypeVar("T", StoredFile, Batch)


class CreateBatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/batches`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"output_expires_after": ()}

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None

    def check(self) -> None:
        """Raises `InvalidRequest`."""
        if self.endpoint not in URLS:
            raise InvalidRequest(
                f"endpoint must be one of {', '.join(URLS)}, got {shown(self.endpoint)}.",
                "endpoint",
            )
        if self.completion_window != "24h":
            raise InvalidRequest(
                f"completion_window must be '24h', got {shown(self.completion_window)}.",
                "completion_window",
            )
        if len(self.metadata or ()) > MOST_METADATA or any(
            len(key) > 64 or len(value) > 512 for key, value in (self.metadata or {}).items()
        ):
            raise InvalidRequest(
                f"metadata may have {MOST_METADATA} entries, with keys of 64 and values of 512 "
                "characters.",
                "metadata",
            )


class FileObject(msgspec.Struct, kw_only=True):
    """OpenAI's object of a file."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str


class BatchErrors(msgspec.Struct):
    data: list[Any]
    object: str = "list"


class BatchObject(msgspec.Struct, kw_only=True):
    """OpenAI's object of a batch."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: dict[str, int]
    metadata: dict[str, str] | None


@describes(gives=FileObject, form=("purpose", "file"))
async def create_file(http: Request) -> Response:
    """Upload the requests of a batch: a form with the fields `purpose` ("batch") and `file`."""
    from ockham.api.server.batches.upload import read_upload

    batches = _batches(http)
    settings = house(http).settings
    return _json(_shown(await read_upload(http, batches.store, settings, caller_of(http).name)))


@describes(gives=dict[str, Any], queries=("purpose", "order", "after", "limit"))
async def list_files(http: Request) -> Response:
    """The caller's files, the newest first; `purpose`, `order`, `after` and `limit` choose."""
    purpose, order = http.query_params.get("purpose"), http.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order must be 'asc' or 'desc', got {shown(order)}.", "order")
    files = _own(http, list(_batches(http).store.files.values()))
    files = [file for file in files if purpose is None or file.purpose == purpose]
    return _listed(http, files[::-1] if order == "asc" else files, MOST_LISTED)


@describes(gives=FileObject)
async def show_file(http: Request) -> Response:
    """One file of the caller."""
    return _json(_shown(_file(http)))


@describes(gives=str, media_type="application/octet-stream")
async def file_content(http: Request) -> Response:
    """The content of a file."""
    file = _file(http)
    path = _batches(http).store.path(f"{file.id}.data")
    return FileResponse(path, media_type="application/octet-stream")


@describes(gives=dict[str, Any])
async def delete_file(http: Request) -> Response:
    """Delete a file, unless a batch that is not done needs it."""
    file, store = _file(http), _batches(http).store
    for batch in store.batches.values():
        if batch.status in RUNNING and batch.input_file_id == file.id:
            raise InvalidRequest(f"{batch.id} still needs {file.id}; cancel it first.", "file_id")
    await asyncio.to_thread(store.discard, file.id)
    return _json({"id": file.id, "object": "file", "deleted": True})


@describes(
    takes=CreateBatch,
    gives=BatchObject,
    example={
        "input_file_id": "file-0123456789abcdef01234567",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
)
async def create_batch(http: Request) -> Response:
    """Have the requests of a file answered behind what callers ask for themselves."""
    batches, caller = _batches(http), caller_of(http)
    body = await read(http, CreateBatch)
    body.check()
    file = batches.store.files.get(body.input_file_id)
    if file is None or not _is_own(http, file) or file.purpose != "batch":
        raise InvalidRequest(
            f"There is no file {shown(body.input_file_id)} with the purpose 'batch'; upload it "
            "first.",
            "input_file_id",
        )
    if len(batches.store.batches) >= MOST_BATCHES:
        batches.store.forget_oldest()
    made = new_batch(body.endpoint, file.id, body.completion_window, body.metadata, caller.name)
    batches.add(made)
    return _json(_shown(made))


@describes(gives=dict[str, Any])
async def list_batches(http: Request) -> Response:
    """The caller's batches, the newest first; `after` and `limit` choose."""
    return _listed(http, _own(http, list(_batches(http).store.batches.values())), 100, 20)


@describes(gives=BatchObject)
async def show_batch(http: Request) -> Response:
    """One batch of the caller."""
    return _json(_shown(_batch(http)))


@describes(gives=BatchObject)
async def cancel_batch(http: Request) -> Response:
    """Begin no further request of a batch. What was answered is kept."""
    batch = _batch(http)
    if batch.status not in RUNNING:
        raise InvalidRequest(f"{batch.id} is {batch.status}; there is nothing to cancel.", "id")
    _batches(http).cancel(batch)
    return _json(_shown(batch))


ROUTES = (
    Route("/v1/files", create_file, methods=["POST"]),
    Route("/v1/files", list_files),
    Route("/v1/files/{file_id}", show_file),
    Route("/v1/files/{file_id}", delete_file, methods=["DELETE"]),
    Route("/v1/files/{file_id}/content", file_content),
    Route("/v1/batches", create_batch, methods=["POST"]),
    Route("/v1/batches", list_batches),
    Route("/v1/batches/{batch_id}", show_batch),
    Route("/v1/batches/{batch_id}/cancel", cancel_batch, methods=["POST"]),
)


def _batches(http: Request) -> Batches:
    found = house(http).batches
    if found is None:
        raise HttpError(
            404,
            "This server keeps no files and batches; start it with --batch-dir DIRECTORY.",
            code="not_found",
        )
    return found


def _is_own(http: Request, each: StoredFile | Batch) -> bool:
    caller = caller_of(http)
    return caller.is_admin or each.owner == caller.name


def _own(http: Request, found: list[T]) -> list[T]:
    """Those of the caller, the newest first."""
    own = [each for each in found if _is_own(http, each)]
    return sorted(own, key=lambda each: (each.created_at, each.id), reverse=True)


def _file(http: Request) -> StoredFile:
    name = http.path_params["file_id"]
    file = _batches(http).store.files.get(name)
    if file is None or not _is_own(http, file):
        raise HttpError(404, f"There is no file {shown(name)}.", param="file_id", code="not_found")
    return file


def _batch(http: Request) -> Batch:
    name = http.path_params["batch_id"]
    batch = _batches(http).store.batches.get(name)
    if batch is None or not _is_own(http, batch):
        raise HttpError(404, f"There is no batch {shown(name)}.", param="id", code="not_found")
    return batch


def _shown(each: StoredFile | Batch) -> FileObject | BatchObject:
    fields = msgspec.structs.asdict(each)
    if isinstance(each, StoredFile):
        return FileObject(**{name: fields[name] for name in _FILE_FIELDS})
    return BatchObject(
        **{
            **{name: fields[name] for name in _BATCH_FIELDS},
            "errors": BatchErrors(list(each.errors)) if each.errors else None,
            "request_counts": msgspec.structs.asdict(each.request_counts),
        }
    )


_FILE_FIELDS = set(FileObject.__struct_fields__) & set(StoredFile.__struct_fields__)
_BATCH_FIELDS = set(BatchObject.__struct_fields__) & set(Batch.__struct_fields__)


def _listed(
    http: Request, found: Sequence[StoredFile | Batch], most: int, default: int | None = None
) -> Response:
    """A page of a list. Raises `InvalidRequest`."""
    given = http.query_params.get("limit")
    limit = default or most
    if given is not None:
        if not given.isdecimal() or not 1 <= int(given[:9]) <= most:
            raise InvalidRequest(f"limit must lie in [1, {most}], got {shown(given)}.", "limit")
        limit = int(given)
    after = http.query_params.get("after")
    if after is not None:
        places = [place for place, each in enumerate(found) if each.id == after]
        if not places:
            raise InvalidRequest(f"after names {shown(after)}, which is not in the list.", "after")
        found = found[places[0] + 1 :]
    page = [_shown(each) for each in found[:limit]]
    return _json(
        {
            "object": "list",
            "data": page,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": len(found) > limit,
        }
    )


def _json(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
