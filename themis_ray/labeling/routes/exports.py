"""Answers as files, over the API."""

import shutil
import tempfile
from pathlib import Path as FilePath
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from themis_ray.errors import DataError
from themis_ray.labeling.callers import ServiceOf, StudyCaller
from themis_ray.labeling.export import ANSWER_FORMATS
from themis_ray.labeling.store import StoreError, WrongError
from themis_ray.labeling.transfer import export_study, import_study
from themis_ray.wire import Slug, Wire

__all__ = ["router"]

router = APIRouter(tags=["experimenters"])

FormatName = Literal["parquet", "jsonl", "csv", "huggingface"]
MEDIA_TYPES = {
    "parquet": "application/vnd.apache.parquet",
    "jsonl": "application/jsonl",
    "csv": "text/csv; charset=utf-8",
    "huggingface": "application/zip",
}
MAX_IMPORT_BYTES = 2**29


class ImportReceipt(Wire):
    """What became of the answers of a file."""

    num_new: int
    num_known: int
    num_withdrawn: int


class TooLargeFileError(WrongError):
    """More bytes than are taken."""

    status = 413


@router.get("/studies/{study}/export", response_class=FileResponse)
def export(
    service: ServiceOf,
    caller: StudyCaller,
    study: Annotated[Slug, Path()],
    format_name: Annotated[FormatName, Query(alias="format")] = "parquet",
) -> FileResponse:
    """Sends all answers that count, each with where it comes from; huggingface is a zip."""
    folder = FilePath(tempfile.mkdtemp(prefix="themis-export-"))
    try:
        path = folder / f"{study}{ANSWER_FORMATS[format_name]}"
        num_rows = export_study(service.store, study, path, format_name, service.weights(study))
        service.store.access.record(caller.id, "answers.export", study, {"format": format_name, "num_rows": num_rows})
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, DataError):
            raise _refused(error, path) from error
        raise
    return FileResponse(
        path,
        media_type=MEDIA_TYPES[format_name],
        filename=path.name,
        background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True),
    )


@router.post("/studies/{study}/import")
async def import_answers(
    request: Request,
    service: ServiceOf,
    caller: StudyCaller,
    study: Annotated[Slug, Path()],
    format_name: Annotated[FormatName, Query(alias="format")] = "parquet",
) -> ImportReceipt:
    """Stores answers of an export, which is the body; the study needs their queries. Twice is as once."""
    folder = FilePath(tempfile.mkdtemp(prefix="themis-import-"))
    try:
        path = folder / f"{study}{ANSWER_FORMATS[format_name]}"
        num_bytes = 0
        with path.open("wb") as file:
            async for part in request.stream():
                num_bytes += len(part)
                if num_bytes > MAX_IMPORT_BYTES:
                    raise TooLargeFileError(f"the file is larger than {MAX_IMPORT_BYTES} bytes. Import it in parts.")
                file.write(part)
        counts = await run_in_threadpool(import_study, service.store, study, path, caller.id)
    except DataError as error:
        raise _refused(error, path) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ImportReceipt(**vars(counts))


def _refused(error: DataError, path: FilePath) -> StoreError:
    """Returns what the sender is told, to whom the name of our own temporary file says nothing."""
    return StoreError(str(error).replace(str(path), "the file"))
