"""Files that every machine of a cluster must see."""

from __future__ import annotations

import os
import socket

from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage import Location, store_at

__all__ = ["require_visible"]


def require_visible(where: str, *locations: Location) -> None:
    """Refuses local files that are there for the driver and not for this process.

    A worker would otherwise write its parts where nobody finds them.

    Raises:
        SourceError: One can't be seen from here, or not any more.
    """
    for location in locations:
        path = store_at(location).local_path
        if path is not None and not os.path.exists(path):
            raise SourceError(
                f"{where}: a worker on {socket.gethostname()} (process {os.getpid()}) can't see "
                f"{location.uri}, which was there for the driver. If it was deleted meanwhile, put "
                "it back; otherwise put source and sink where every machine of the cluster sees "
                "them under the same name (s3://, gs://, a shared file system), or run the job on "
                "one machine"
            )
