import socket
import subprocess
import sys
import textwrap

import pytest

from tasks import cluster, ray_servers
from tasks.errors import InterruptedJobError


@pytest.fixture
def server(monkeypatch):
    """A socket that takes connections, and what watches it, with hardly any patience."""
    listening = socket.create_server(("127.0.0.1", 0))
    watched = ray_servers._Server("raylet on this machine", listening.getsockname(), 0.05)
    monkeypatch.setattr(ray_servers, "_watched", [watched])
    yield listening, watched
    listening.close()


def test_a_server_that_takes_connections_is_there(server):
    _, watched = server
    watched.ask()
    ray_servers.require()
    ray_servers.wait()
    assert watched.refused_s == 0 and not ray_servers.lost()


def test_a_server_that_refuses_for_long_is_gone(server):
    listening, watched = server
    listening.close()
    watched.ask()
    with pytest.raises(InterruptedJobError, match=r"raylet on this machine is gone: .* run the same command"):
        ray_servers.wait()
    assert ray_servers.lost()
    with pytest.raises(InterruptedJobError):
        ray_servers.require()


def test_a_head_that_comes_back_in_time_is_none_that_is_gone(server):
    listening, watched = server
    watched.patience_s = 60.0
    listening.close()
    watched.ask()
    ray_servers.require()  # Whoever needs no answer goes on
    with socket.create_server(watched.address):
        watched.ask()
        ray_servers.wait()
    assert watched.refused_s == 0


def test_a_process_that_waits_within_ray_ends_with_the_sentence():
    waiting = textwrap.dedent("""
        import socket, threading, time
        from tasks import ray_servers
        with socket.create_server(("127.0.0.1", 0)) as gone:
            address = gone.getsockname()
        ray_servers._ASK_EVERY_S, ray_servers._LAST_WORD_S = 0.05, 0.1
        ray_servers._watch([ray_servers._Server("head", address, 0.1)], threading.Event())
    """)
    told = subprocess.run([sys.executable, "-c", waiting], capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("Ray's head is gone: something ended it")


@pytest.mark.parametrize(("said", "told"), [("It timed out.\nMore", "It timed out"), ("", "Exception")])
def test_a_ray_that_does_not_start_may_start_when_tried_again(monkeypatch, said, told):
    def fail(quiet):
        raise Exception(said)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "_start_local", fail)
    with pytest.raises(InterruptedJobError) as caught, cluster.connected():
        pass
    assert str(caught.value) == f"Ray did not start on this machine: {told}. Run the same command again."


def test_the_servers_of_a_cluster_are_found(ray_cluster):
    with ray_servers.watched(head_may_return=False):
        names = [server.name for server in ray_servers._watched]
        for server in ray_servers._watched:
            server.ask()
        assert names[0] == "raylet on this machine" and names[1].startswith("head at ")
        assert not any(server.refused_since for server in ray_servers._watched)
    assert ray_servers._watched == []
