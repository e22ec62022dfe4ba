"""Files that every machine of a cluster must see."""

from __future__ import annotations

import os
import socket

from sheaf_dagster.errors import SourceChangedError, SourceError
from sheaf_dagster.storage import Location

__all__ = ["require_visible"]


def require_visible(where: str, *locations: Location) -> None:
    """Refuses local files that are there for the driver and not for this process.

    A worker would otherwise write its parts where nobody finds them.

    Raises:
        SourceChangedError: The folder is there, the file is not any more.
        SourceError: One can't be seen from here.
    """
    for location in locations:
        if not location.is_local or os.path.exists(location.uri):
            continue
        if os.path.isdir(os.path.dirname(location.uri)):
            # The folder is seen from here: it is the file that has gone.
            raise SourceChangedError(
                f"{where}: {location.uri} was deleted or moved while the job ran; run again once "
                "whoever did that has finished"
            )
        raise SourceError(
            f"{where}: a worker on {socket.gethostname()} (process {os.getpid()}) can't see "
            f"{location.uri}, which was there for the driver; put source and sink where every "
            "machine of the cluster sees them under the same name (s3://, gs://, a shared file "
            "system), or run the job on one machine"
        )
