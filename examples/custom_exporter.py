"""An exporter of your own: any object with `export(batch)`. This one keeps an audit log of tool calls.

Retry is not its business. It raises `OSError` or `ExportError` while its destination is away, and gets the same batch
again until that works; meanwhile the journal keeps the records. Those that it will never take go into a
`RejectedError`, and from there to the folder `rejected`, each with its reason. Delivery is at least once: after a crash
a record may come again, with the same id.

To make it known by a URL, `sw.configure(export="audit:tools.jsonl")`, register it in the pyproject.toml of a package:

    [project.entry-points."stepwell.exporters"]
    audit = "my_package:AuditLog.from_url"

Run it with `python examples/custom_exporter.py`.
"""

import os
import shutil
from pathlib import Path

import stepwell as sw
from stepwell.errors import RejectedError
from stepwell.exporters import Batch
from stepwell.model import StepRecord

MAX_LINE_BYTES = 1000


class AuditLog:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = f"audit:{path.absolute()}"  # by this name a later process delivers what this one could not

    @classmethod
    def from_url(cls, url: str, home: Path | None) -> "AuditLog":
        return cls((home or Path()) / url.partition(":")[2])

    def export(self, batch: Batch) -> None:
        lines: list[bytes] = []
        refused: dict[int, str] = {}
        for index, (record, frame) in enumerate(zip(batch.records, batch.frames, strict=True)):
            if not isinstance(record, StepRecord) or record.type != "tool" or record.status == "pending":
                continue  # taken, and of no interest here
            if len(frame) > MAX_LINE_BYTES:
                refused[index] = f"longer than {MAX_LINE_BYTES} bytes"
            else:
                lines.append(frame + b"\n")
        with self.path.open("ab") as file:  # raises OSError while the folder is not there
            file.writelines(lines)
        if refused:
            raise RejectedError(f"{len(refused)} records refused", rejected=refused)


@sw.tool
def pay(account: str, amount: float) -> str:
    return f"{amount} paid to {account}"


if __name__ == "__main__":
    home = Path(os.environ.get("STEPWELL_HOME", ".stepwell"))
    audit = AuditLog(home / "audit" / "tools.jsonl")
    shutil.rmtree(audit.path.parent, ignore_errors=True)  # of an earlier run
    sw.configure(export=["sqlite:", audit])

    pay("ada", 12.5)
    pay("x" * 2000, 1.0)
    print("delivered while the folder is missing:", sw.flush(timeout=0.3))
    print("waiting:", sw.stats().exporters[audit.key].waiting)

    audit.path.parent.mkdir()
    print("delivered once it is there:", sw.flush())
    print("rejected:", sw.stats().exporters[audit.key].rejected)
    print("lines in the log:", len(audit.path.read_text().splitlines()))
