"""OpenStack Swift with its S3 API on loopback: an S3 that shares no code with moto (``make test-s3``).

It does what real ones do: parts of an upload below 5 MiB are refused, listings come in pages, and
an object may be created only where there is none. It has no ``If-Match`` for writes. Small jobs
that are to make the requests of large ones reach the same buckets at a second address, where parts
may be small.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.object_store import SMALL_PART, ObjectStore, bucket_on
from tests.ports import free_ports

KEY, SECRET = "tests:swift", "test-only-secret-access-key-0123456789"

_LEAST_PARTS = {"proxy": 5 * 2**20, "proxy-small-parts": SMALL_PART}

_KINDS = {
    "account": "recon account-server",
    "container": "recon container-server",
    "object": "recon object-server",
}
_COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 1
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
log_facility = LOG_LOCAL0
log_level = ERROR

[pipeline:main]
pipeline = {pipeline}

"""
_SERVER = """[app:{kind}-server]
use = egg:swift#{kind}

[filter:recon]
use = egg:swift#recon
recon_cache_path = {folder}
"""
_PIPELINE = (
    "catch_errors proxy-logging cache listing_formats s3api tempauth slo dlo versioned_writes "
    "symlink proxy-server"
)
_PROXY = """[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
node_timeout = 60
conn_timeout = 30

[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
allow_multipart_uploads = true
min_segment_size = {least_part}

[filter:tempauth]
use = egg:swift#tempauth
{account} = {secret} .admin

[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1

[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:proxy-logging]
use = egg:swift#proxy_logging

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:slo]
use = egg:swift#slo

[filter:dlo]
use = egg:swift#dlo

[filter:symlink]
use = egg:swift#symlink
"""


class SwiftServer:
    """A whole Swift of one copy: two proxies, and one server of accounts, containers and objects.

    Args:
        programs: The folder of Swift's programs.
    """

    answers_within = 30.0

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = tempfile.TemporaryDirectory(prefix="sheaf-swift-")
        folder = Path(self._folder.name)
        (folder / "devices" / "d1").mkdir(parents=True)
        (folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n"
            "[storage-policy:0]\nname = Policy-0\ndefault = yes\n"
        )
        ports = free_ports(len(_KINDS) + len(_LEAST_PARTS))
        proxies = ports[len(_KINDS) :]
        fill = {"folder": folder, "user": pwd.getpwuid(os.getuid()).pw_name}
        self._processes: list[subprocess.Popen[bytes]] = []
        for (kind, pipeline), port in zip(_KINDS.items(), ports[: len(_KINDS)], strict=True):
            _build_ring(self._programs, folder, kind, port)
            conf = _COMMON.format(port=port, pipeline=pipeline, **fill)
            self._start(kind, conf + _SERVER.format(kind=kind, **fill))
        account = "user_" + KEY.replace(":", "_")
        for (name, least), port in zip(_LEAST_PARTS.items(), proxies, strict=True):
            proxy = _PROXY.format(account=account, secret=SECRET, least_part=least)
            self._start(name, _COMMON.format(port=port, pipeline=_PIPELINE, **fill) + proxy)
        self.endpoint, self._small_parts = (f"http://127.0.0.1:{port}" for port in proxies)
        for endpoint in (self.endpoint, self._small_parts):
            self._wait(endpoint)

    def bucket(self) -> ObjectStore:
        """A new one."""
        return bucket_on(self.endpoint, KEY, SECRET)

    def takes_small_parts(self, _: pytest.MonkeyPatch) -> str:
        """The address at which parts of an upload may be small."""
        return self._small_parts

    def stop(self) -> None:
        """Ends the servers."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
        self._folder.cleanup()

    def _start(self, name: str, conf: str) -> None:
        path = Path(self._folder.name) / f"{name}.conf"
        path.write_text(conf)
        program = self._programs / f"swift-{name.split('-')[0]}-server"
        with path.with_suffix(".log").open("wb") as log:
            self._processes.append(subprocess.Popen([program, path, "-v"], stdout=log, stderr=log))

    def _wait(self, endpoint: str) -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            for process in self._processes:
                if process.poll() is not None:
                    raise RuntimeError(f"a server of Swift has ended:\n{self.logs()}")
            try:
                urllib.request.urlopen(f"{endpoint}/info", timeout=5)
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise RuntimeError(f"Swift didn't come up:\n{self.logs()}")

    def logs(self) -> str:
        """What the servers have said."""
        folder = Path(self._folder.name)
        return "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))


def _build_ring(programs: Path, folder: Path, kind: str, port: int) -> None:
    """Says where objects of a kind are: 2^4 places, one copy."""
    for words in (
        ["create", "4", "1", "1"],
        ["add", f"r1z1-127.0.0.1:{port}/d1", "1"],
        ["rebalance"],
    ):
        subprocess.run(
            [programs / "swift-ring-builder", folder / f"{kind}.builder", *words],
            check=True,
            capture_output=True,
        )
