import collections

from tasks.stream.meter import Meter, starving
from tasks.stream.units import UnitReport


def stages(read: float, score: float, refine: float) -> dict[str, dict[str, float]]:
    shares = {"read": read, "score": score, "refine": refine}
    return {stage: {"busy_share": share, "busy_s": 100 * share} for stage, share in shares.items()}


def test_who_starves_is_said_with_the_remedy():
    said = starving(stages(0.1, 0.38, 0.97), gpus=True)
    assert said == "Scoring waits for refinement 62% of the time: add CPUs."
    assert "Scoring waits for reading" in starving(stages(0.9, 0.3, 0.2), gpus=True)
    assert "add GPUs" in starving(stages(0.1, 0.95, 0.1), gpus=True)
    assert starving(stages(0.3, 0.9, 0.8), gpus=True) == ""
    # Without a GPU the stages share the cores: only storage can hold them up
    assert starving(stages(0.01, 0.3, 0.6), gpus=False) == ""
    assert "wait for reading, which takes 80% of the work" in starving(stages(0.8, 0.1, 0.1), gpus=False)


def test_units_add_up_to_the_figures_of_a_session():
    meter = Meter("run")
    workers = {"read": 2, "score": 2, "refine": 2}
    meter.begin(workers)
    for number in range(3):
        meter.add(
            UnitReport(
                f"unit-{number}",
                images=4,
                errors=collections.Counter(empty=1),
                seconds={"read": 0.5, "score": 2.0, "refine": 1.0},
                waits={"score": 3.0, "refine": 0.0},
                node=f"node {number % 2}",
            )
        )
    meter.end(workers)
    figures = meter.stages()
    assert (meter.images, meter.errors, meter.nodes) == (12, {"empty": 3}, {"node 0": 8, "node 1": 4})
    assert figures["score"]["busy_s"] == 6.0 and figures["score"]["images_per_s"] == 2.0
    assert figures["score"]["queue_units"] > figures["refine"]["queue_units"] == 0


def test_prometheus_is_told_the_same(ray_cluster):
    """The exporter of Ray's node serves them under these names."""
    import time
    import urllib.request

    import ray

    meter = Meter("told")
    meter.export()
    meter.begin({"read": 1, "score": 1, "refine": 1})
    meter.add(UnitReport("unit", images=4, errors=collections.Counter(empty=2), seconds={"score": 2.0}))
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {"ray_segment_archive_images_total", "ray_segment_archive_errors_total"}
    deadline, names, told = time.monotonic() + 120, set(), ""
    while not wanted <= names and time.monotonic() < deadline:  # Other runs of this cluster are told there too
        time.sleep(0.5)
        told = urllib.request.urlopen(address, timeout=10).read().decode()
        names = {line.partition("{")[0] for line in told.splitlines() if '="told"' in line}
    assert wanted <= names, told[-2000:]
    assert {"ray_segment_archive_busy_seconds_total", "ray_segment_archive_workers"} <= names
