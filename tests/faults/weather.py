"""Bad weather between the job and its object store, by a proxy before a real S3 server, while it lists, reads, writes.

The job either gets through or ends with one sentence, and then the same command finishes it.
"""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tasks import storage_client
from tasks.storage import locate
from tests.fault_proxy import FaultProxy
from tests.faults.bench import Bench, Job, mask_files, wait_for_commits
from tests.faults.fault import Fault, Outcome
from tests.processes import free_port

KEYS = ("firstkey", "secondkey")
SECRET = "testsecret"
TIMEOUT_S = 3
"""Of one request, instead of a minute, so that silence makes short trials."""


@dataclasses.dataclass(frozen=True)
class Weather:
    """What a trial's weather is, and how long it lasts."""

    kind: str
    share: float = 1.0
    seconds: float = 6.0
    from_the_start: bool = False
    """Before anything is listed, instead of after a random number of commits."""


@contextlib.contextmanager
def store(place: Path, source: Path) -> Iterator[FaultProxy]:
    """A real S3 server with the photographs in a bucket, and a proxy before it."""
    root = place / "s3"
    (root / "masks").mkdir(parents=True)
    shutil.copytree(source, root / "photographs", symlinks=False, ignore_dangling_symlinks=True)
    port = free_port()
    rclone = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
    assert rclone, "rclone is missing: install the project with its dev dependencies"
    command = [rclone, "serve", "s3", str(root), "--addr", f"127.0.0.1:{port}", "-q"]
    for key in KEYS:
        command += ["--auth-key", f"{key},{SECRET}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # This process looks at the store without the proxy
    calm = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": KEYS[1]}
    calm |= {"AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    before = {name: os.environ.get(name) for name in calm}
    os.environ.update(calm)
    storage_client.refresh()
    try:
        with FaultProxy(port).running() as proxy:
            yield proxy
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
        storage_client.refresh()


def start(bench: Bench, place: Path, proxy: FaultProxy, engine: str = "local") -> Job:
    """The job, bucket to bucket, through the proxy."""
    profile = place / "credentials"
    if not profile.exists():
        write_key(profile, KEYS[0])
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        "AWS_SHARED_CREDENTIALS_FILE": str(profile),
        "SEGMENT_ARCHIVE_STORAGE_TIMEOUT_S": str(TIMEOUT_S),
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
    }
    return bench.start("s3://masks/out", place / "log", "s3://photographs", engine, **environment)


def write_key(profile: Path, key: str) -> None:
    """Renew the credentials as a provider of temporary ones does: in the file, while the job runs."""
    new = profile.with_suffix(".new")
    new.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n")
    new.rename(profile)


def run(bench: Bench, trial: int, name: str, weathers: tuple[Weather, ...], renew: bool = False) -> Outcome:
    """One job in this trial's weather. renew: whether credentials are renewed before the old ones expire."""
    weather = weathers[trial % len(weathers)]
    place, dice, outcome = bench.fresh(name, trial), bench.dice(name, trial), Outcome()
    output = locate("s3://masks/out")
    expected = bench.undisturbed_in_bucket()
    with store(place, bench.source) as proxy:
        proxy.expired_key = KEYS[0]
        job = start(bench, place, proxy)
        try:
            if not weather.from_the_start:
                wait_for_commits(job, output, dice.randint(0, 8))
            if renew:
                write_key(place / "credentials", KEYS[1])
            before, proxy.share, proxy.weather = len(mask_files(output)), weather.share, weather.kind
            ends = time.monotonic() + weather.seconds
            while time.monotonic() < ends and job.running:
                time.sleep(0.5)
                outcome.duplicated += bench.judge(str(output.uri), expected).duplicated  # And all is whole
            proxy.weather, calm = "calm", time.monotonic()
            assert proxy.struck, f"{weather} struck nothing"
            status = job.wait()
            if status:
                # It must have ended with one sentence, and the same command goes on
                assert len(job.sentences) == 1 and "Traceback" not in job.told, job.told
                outcome.sentences += job.sentences
                write_key(place / "credentials", KEYS[1])
                job = start(bench, place, proxy)
                calm = time.monotonic()
            if wait_for_commits(job, output, before):
                outcome.recovery_s.append(time.monotonic() - calm)
            assert job.wait() == 0, job.told
            return outcome + bench.judge(output.uri, expected)
        finally:
            proxy.weather = "calm"
            job.end()


def _fault(name: str, what: str, *weathers: Weather, renew: bool = False) -> Fault:
    trials = max(2, len(weathers))
    return Fault(name, what, lambda bench, trial: run(bench, trial, name, weathers, renew), trials=trials)


FAULTS = (
    _fault("s3-errors", "S3: half of all answers are 500", Weather("error", 0.5), Weather("error", 0.5, 6, True)),
    _fault("s3-storm", "S3: a storm of 503 SlowDown", Weather("slow-down"), Weather("slow-down", 0.8, 10, True)),
    _fault("s3-resets", "S3: connections are reset", Weather("reset", 0.5, 10), Weather("reset", 1.0, 4)),
    _fault("s3-cut-uploads", "S3: uploads are cut half-way", Weather("cut-upload", 1.0, 8)),
    _fault("s3-cut-downloads", "S3: answers are cut half-way", Weather("cut-download", 0.5, 8)),
    _fault("s3-trickle", "S3: answers trickle at 20 kB/s", Weather("trickle", 1.0, 10)),
    _fault("s3-silence", "S3: no answer", Weather("silent", 1.0, 12), Weather("silent", 1.0, 12, True)),
    _fault("s3-outage", "S3: unreachable for longer than it is tried", Weather("reset", 1.0, 150)),
    _fault("s3-renewed", "S3: credentials expire, and are renewed in time", Weather("expired", 1.0, 60), renew=True),
    _fault("s3-expired", "S3: credentials expire", Weather("expired", 1.0, 60)),
    _fault("s3-read-only", "S3: the bucket becomes read-only", Weather("read-only", 1.0, 60)),
)
