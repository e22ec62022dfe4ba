"""OpenStack Swift with its S3 API on loopback: an S3 that shares no code with moto (``make test-s3``).

It does what real ones do: parts of an upload below 5 MiB are refused, listings come in pages, and
an object may be created only where there is none. It has no ``If-Match`` for writes.
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

from tests.object_store import ObjectStore, bucket_on
from tests.ports import free_ports

KEY, SECRET = "tests:swift", "test-only-secret-access-key-0123456789"

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
    """A whole Swift of one copy: a proxy, and one server each of accounts, containers and objects.

    Args:
        programs: The folder of Swift's programs.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = tempfile.TemporaryDirectory(prefix="sheaf-swift-")
        folder = Path(self._folder.name)
        (folder / "devices" / "d1").mkdir(parents=True)
        (folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n"
            "[storage-policy:0]\nname = Policy-0\ndefault = yes\n"
        )
        proxy, *ports = free_ports(1 + len(_KINDS))
        fill = {"folder": folder, "user": pwd.getpwuid(os.getuid()).pw_name}
        self._processes: list[subprocess.Popen[bytes]] = []
        for (kind, pipeline), port in zip(_KINDS.items(), ports, strict=True):
            _build_ring(self._programs, folder, kind, port)
            conf = _COMMON.format(port=port, pipeline=pipeline, **fill)
            self._start(kind, conf + _SERVER.format(kind=kind, **fill))
        account = "user_" + KEY.replace(":", "_")
        conf = _COMMON.format(port=proxy, pipeline=_PIPELINE, **fill)
        self._start("proxy", conf + _PROXY.format(account=account, secret=SECRET))
        self.endpoint = f"http://127.0.0.1:{proxy}"
        self._wait()

    def bucket(self) -> ObjectStore:
        """A new one."""
        return bucket_on(self.endpoint, KEY, SECRET)

    def stop(self) -> None:
        """Ends the servers."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
        self._folder.cleanup()

    def _start(self, kind: str, conf: str) -> None:
        path = Path(self._folder.name) / f"{kind}.conf"
        path.write_text(conf)
        program = self._programs / f"swift-{kind}-server"
        with path.with_suffix(".log").open("wb") as log:
            self._processes.append(subprocess.Popen([program, path, "-v"], stdout=log, stderr=log))

    def _wait(self) -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            for process in self._processes:
                if process.poll() is not None:
                    raise RuntimeError(f"a server of Swift has ended:\n{self.logs()}")
            try:
                urllib.request.urlopen(f"{self.endpoint}/info", timeout=5)
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
