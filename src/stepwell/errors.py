"""Every error stepwell raises, grouped by what the caller would do about it.

    StepwellError
    ├── UsageError (ValueError)        fix the call: a wrong type, name, id, URL or setting
    ├── ClosedError                    the object was closed; make a new one
    ├── ExportError                    raised by exporters to the shipper: try the batch again
    │   └── RejectedError              do not try again: the destination refuses these records
    └── StoreError                     the store can't be read or written: the message says which and why
        ├── NotFoundError (LookupError)    nothing has this id
        ├── CorruptStoreError          the file is not, or no longer, a store
        └── ClientError                the server behind a client can't be asked, or answers otherwise than it should

Errors of other libraries are mapped to these at the edge where they appear, with the original as `__cause__`.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "ClientError",
    "ClosedError",
    "CorruptStoreError",
    "ExportError",
    "NotFoundError",
    "RejectedError",
    "StepwellError",
    "StoreError",
    "UsageError",
]


class StepwellError(Exception):
    """Is the base of every error stepwell raises."""


class UsageError(StepwellError, ValueError):
    """Says that a call, an argument or a setting is wrong; the message names it and its value."""


class ClosedError(StepwellError):
    """Says that an exporter, store or recorder was used after it was closed."""


class ExportError(StepwellError):
    """Says that a batch was not taken and should be sent again, as it is.

    `retry_after_s` is the destination's own wish in seconds, None when it has none.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RejectedError(ExportError):
    """Says that the destination refuses records of this batch for good.

    `rejected` maps a record's place in the batch to the reason; every other record of the batch was delivered.
    Without it the whole batch is refused, and the shipper splits it to find the records to blame.
    """

    def __init__(self, message: str, *, rejected: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.rejected: dict[int, str] = dict(rejected or {})


class StoreError(StepwellError):
    """Says that a store can't be read or written now."""


class NotFoundError(StoreError, LookupError):
    """Says that no thread, run, step or score has the id asked for."""


class CorruptStoreError(StoreError):
    """Says that a file is not a store, is damaged, or was written by a newer version."""


class ClientError(StoreError):
    """Says that a server gave no answer, refused the request, or answered what no stepwell server does.

    `status` is the answer's, None where there is none; `request_id` is what a proxy called the request, where one did;
    `retry_after_s` is the server's own wish in seconds, where it has one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status
        self.request_id = request_id
