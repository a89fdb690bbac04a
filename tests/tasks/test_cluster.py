import collections
import re

import pytest
import ray

from tasks import cluster
from tasks.errors import JobError


def booked(plan):
    """CPUs that all workers of a plan hold at once."""
    return (
        plan.num_readers * cluster.READ_CPUS
        + plan.num_scorers * plan.score_cpus
        + plan.num_refiners * cluster.REFINE_CPUS
    )


@pytest.mark.parametrize("cpus", [1, 2, 3, 7, 64, 1000])
def test_cpus_alone_are_all_used_and_never_overbooked(cpus):
    plan = cluster.plan_stages(cpus, 0)
    assert booked(plan) == pytest.approx(cpus)
    assert min(plan.num_readers, plan.num_scorers, plan.num_refiners) >= 1
    assert plan.score_gpus == 0


@pytest.mark.parametrize(("cpus", "gpus"), [(2, 1), (8, 1), (16, 4), (4, 8), (96, 8)])
def test_each_gpu_has_a_scorer_as_far_as_the_cpus_reach(cpus, gpus):
    plan = cluster.plan_stages(cpus, gpus)
    assert booked(plan) <= cpus and plan.score_gpus == 1
    assert plan.num_scorers == min(gpus, cpus - 1)
    assert min(plan.num_readers, plan.num_refiners) >= 1


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0), (0.5, 0), (1, 1)])
def test_a_cluster_that_is_too_small_is_told_what_it_lacks(cpus, gpus):
    with pytest.raises(JobError, match=r"The cluster has .* at least"):
        cluster.plan_stages(cpus, gpus)


def test_every_node_with_a_cpu_scores_and_refines():
    sizes = {"head": (0.0, 0.0), "small": (1.0, 0.0), "large": (6.5, 0.0), "middle": (3.0, 0.0)}
    plan = cluster.plan_nodes(sizes)
    for places in (plan.score_nodes, plan.refine_nodes):
        assert collections.Counter(places) == {"small": 1, "large": 6, "middle": 3}
        assert set(places[:3]) == {"small", "large", "middle"}  # Few units are for all nodes too
    assert (plan.num_scorers, plan.num_refiners, plan.num_readers) == (10, 10, 10)
    for node, (cpus, _) in sizes.items():
        booked_here = plan.score_nodes.count(node) * plan.score_cpus
        assert booked_here + plan.refine_nodes.count(node) * (cluster.REFINE_CPUS + cluster.READ_CPUS) <= cpus


def test_nodes_with_and_without_gpus():
    plan = cluster.plan_nodes({"gpus": (8.0, 4.0), "cpus": (4.0, 0.0), "starved": (1.0, 2.0)})
    assert collections.Counter(plan.score_nodes) == {"gpus": 4, "starved": 1} and plan.score_gpus == 1
    assert collections.Counter(plan.refine_nodes) == {"gpus": 8, "cpus": 8}
    assert booked(plan) <= 13


def test_one_node_is_divided_as_before_and_scraps_are_left_to_ray():
    plan = cluster.plan_nodes({"only": (2.0, 0.0)})
    assert plan.score_nodes == plan.refine_nodes == ("only", "only")
    assert plan.describe() == cluster.plan_stages(2.0, 0.0).describe()
    assert cluster.plan_nodes({"a": (0.5, 0.0), "b": (0.5, 0.0)}) == cluster.plan_stages(1.0, 0.0)
    with pytest.raises(JobError, match="add a node"):
        cluster.plan_nodes({})


def test_the_nodes_of_a_running_cluster(ray_cluster):
    assert list(cluster.all_nodes().values()) == [(2.0, 0.0)]
    assert cluster.free_nodes().keys() <= cluster.all_nodes().keys()


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

    from ray.data import from_items

    def poison(_):
        raise PermissionError("bucket is read-only")

    with pytest.raises(Exception) as caught:
        from_items([1]).map_batches(poison).materialize()
    assert cluster.explain(caught.value) == "PermissionError: bucket is read-only"
