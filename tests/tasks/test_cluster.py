import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray

from tasks import cluster
from tasks.cluster import Share
from tasks.errors import JobError


def booked(share):
    """CPUs that all workers of a node hold at once, with the reading that the driver allows."""
    finishing = share.finishers * (cluster.READ_CPUS + cluster.FINISH_CPUS)
    return share.whole + share.scorers * cluster.GPU_SCORE_CPUS + finishing


def test_without_gpus_each_cpu_has_a_worker_that_does_whole_units():
    sizes = {"head": (0.0, 0.0), "small": (1.0, 0.0), "large": (6.5, 0.0), "middle": (3.0, 0.0)}
    assert cluster.shares(sizes) == {"small": Share(whole=1), "large": Share(whole=6), "middle": Share(whole=3)}


@pytest.mark.parametrize(("cpus", "gpus"), [(2, 1), (8, 1), (16, 4), (4, 8), (96, 8)])
def test_each_gpu_has_a_scorer_as_far_as_the_cpus_reach(cpus, gpus):
    share = cluster.shares({"node": (cpus, gpus)})["node"]
    assert share.scorers == min(gpus, cpus - 1) and share.finishers >= 1 and not share.whole
    assert booked(share) <= cpus


def test_nodes_with_and_without_gpus():
    nodes = {"gpus": (8.0, 4.0), "cpus": (4.0, 0.0), "starved": (1.0, 2.0)}
    divided = cluster.shares(nodes)
    assert divided == {"gpus": Share(0, 4, 8), "cpus": Share(0, 0, 8), "starved": Share(0, 1, 0)}
    # What joins a session without GPUs is used for its CPUs
    assert cluster.shares(nodes, on_gpus=False)["gpus"] == Share(whole=8)


@pytest.mark.parametrize("nodes", [{}, {"a": (0.5, 0.0)}, {"a": (1.0, 1.0)}])
def test_a_cluster_that_is_too_small_is_told_what_it_lacks(nodes):
    with pytest.raises(JobError, match=r"The cluster has .* at least: add a node"):
        cluster.require_room(nodes)
    cluster.require_room(nodes | {"more": (1.0, 0.0)})


def test_the_nodes_of_a_running_cluster(ray_cluster):
    assert list(cluster.all_nodes().values()) == [(2.0, 0.0)]


def test_a_busy_cluster_says_so_instead_of_waiting(ray_cluster, monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE_S", 1.0)

    @ray.remote(num_cpus=2)
    class Holder:
        def ready(self):
            return True

    holder = Holder.remote()
    assert ray.get(holder.ready.remote())
    with pytest.raises(JobError, match="has 2 CPUs, of which 0 are free"):
        cluster.free_resources()
    ray.kill(holder)


def test_what_a_signal_raises_reaches_who_waits_for_ray(ray_cluster):
    class Cancelled(BaseException):
        pass

    def cancel(*_):
        raise Cancelled

    @ray.remote(num_cpus=0)
    def work():
        time.sleep(20)

    listening = signal.signal(signal.SIGALRM, cancel)
    reference = work.remote()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(Cancelled):
            cluster.ready([reference])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, listening)
        ray.cancel(reference, force=True)


def test_what_ended_workers_held_is_waited_for(monkeypatch):
    offers = iter([{"CPU": 1.0}, {"CPU": 3.0}, {"CPU": 8.0, "GPU": 1.0}])
    monkeypatch.setattr(ray, "available_resources", lambda: next(offers))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)
    assert cluster.free_resources((8.0, 1.0)) == (8.0, 1.0)


def test_an_address_where_no_cluster_is(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**_):
        raise ConnectionError("Could not find any running Ray instance.\nMore lines.")

    monkeypatch.setattr(ray, "init", refuse)
    words = re.escape("RAY_ADDRESS=127.0.0.1:1: Could not find any running Ray instance")
    with pytest.raises(JobError, match=words), cluster.connected():
        pass


def test_the_reason_is_dug_out_of_rays_wrapping(ray_cluster):
    @ray.remote
    def fail():
        raise OSError(28, "No space left on device")

    with pytest.raises(Exception) as caught:
        ray.get(fail.remote())
    explained = cluster.explain(caught.value)
    assert "No space left on device" in explained and "\n" not in explained and "Traceback" not in explained


@pytest.mark.slow
def test_a_local_cluster_leaves_no_session_and_sweeps_those_of_killed_runs():
    with tempfile.TemporaryDirectory() as short:  # Paths of sockets have 107 bytes at most
        code = "import os, signal\nfrom tasks import cluster\nwith cluster.connected(): {}"
        environment = {**os.environ, "RAY_TMPDIR": short, "HOME": short}
        environment.pop("RAY_ADDRESS", None)
        killed = code.format("os.kill(os.getpid(), signal.SIGKILL)")
        assert subprocess.run([sys.executable, "-c", killed], env=environment).returncode == -signal.SIGKILL
        [left] = Path(short, "ray").glob("session_2*")
        Path(short, "ray", f"session_2000_{left.name.rpartition('_')[2]}").mkdir()  # Of another program
        subprocess.run([sys.executable, "-c", code.format("pass")], env=environment, check=True)
        [other] = Path(short, "ray").glob("session_2*")
        assert other.name.startswith("session_2000_")
