"""Runs on a real Ray cluster of two nodes on this machine: the same numbers, also where a node is lost on the way."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import much_to_record, small_config, wait_for_end, wait_for_writing, wait_until
from workbench import lab as labs
from workbench import launch, queueing
from workbench.config import MergeConfig
from workbench.events import read_lines
from workbench.labdir import LabDir, Point, requests_left
from workbench.processes import end_group
from workbench.rundir import RunDir, find_run, read_json, write_json

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own processes and sockets
]
ray = pytest.importorskip("ray", reason="Ray is not installed")
checks = pytest.importorskip("workbench.cluster.checks")
client = pytest.importorskip("workbench.cluster.client")
ROW_KEYS = ("checkpoint_id", "task", "question_id", "sample", "text", "is_correct", "kept")
MOMENT_S = 600.0


class TwoNodes:
    """A head with two cores and another node with two, in one process each; every core is a worker's."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.dashboard = f"http://127.0.0.1:{port}"
        head = {"num_cpus": 2, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
        self.cluster = Cluster(initialize_head=True, head_node_args=head | {"object_store_memory": 200 * 2**20})
        self.other, self.cache = None, Path(os.environ["WORKBENCH_CACHE"])
        self.add()

    def add(self) -> None:
        self.other = self.cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20)

    def kill_the_other(self) -> None:
        """As when its machine goes down."""
        self.cluster.remove_node(self.other, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[TwoNodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        there = TwoNodes()
        yield there
        there.cluster.shutdown()


def config_for(**changes):
    """Small, with enough batches that every worker has some."""
    small = {"eval_tasks": ["pocket_words"], "engine.batch_size": 6, "engine.kind": "transformers", "num_questions": 12}
    return small_config(**small | {"eval_questions": 12, "analyze.num_examples": 4} | changes)


def on_the_cluster(nodes: TwoNodes, home: Path, **changes) -> RunDir:
    config = config_for(**{"on": "ray", "ray.address": nodes.dashboard} | changes)
    return find_run(home, launch.launch(config, home))


def numbers(run: RunDir) -> dict:
    """All that must be equal: solutions, answers, the merge, what was measured of the layers."""

    def rows(file: Path) -> list[tuple]:
        return sorted(
            tuple(str(row.get(key)).replace(run.run_id, "") for key in ROW_KEYS) for row in read_lines(file)[0]
        )

    def summary(iteration: int, phase: str) -> dict:
        return read_json(run.phase(iteration, phase).result)["summary"]

    analysis = summary(1, "analyze") if run.phase(1, "analyze").result.exists() else {"changes": [], "importance": []}
    return {
        "solutions": rows(run.phase(1, "sample").solutions),
        "base": rows(run.phase(0, "evaluate").outcomes),
        "outcomes": rows(run.phase(1, "evaluate").outcomes),
        "loss": summary(1, "sft")["loss"],
        "merge": summary(1, "merge")["sha256"],
        "change": [row["change"] for row in analysis["changes"]],
        "importance": [row["importance"] for row in analysis["importance"]],
    }


def without_analysis(found: dict) -> dict:
    return found | {"change": [], "importance": []}


@pytest.fixture(scope="module")
def here_alone(tmp_path_factory) -> dict:
    """The numbers of the run on one machine."""
    home = tmp_path_factory.mktemp("alone")
    run = find_run(home, launch.launch(config_for(), home))
    status, error = wait_for_end(home, run.run_id, MOMENT_S)
    assert status == "done", error
    return numbers(run)


@pytest.fixture(scope="module")
def on_one(nodes, tmp_path_factory) -> RunDir:
    """A run of one worker, on nodes that share the home."""
    home = tmp_path_factory.mktemp("one")
    run = on_the_cluster(nodes, home, **{"ray.replicas": 1})
    status, error = wait_for_end(home, run.run_id, MOMENT_S)
    assert status == "done", error
    return run


def test_one_worker_gives_the_numbers_of_one_machine(here_alone, on_one):
    assert numbers(on_one) == here_alone


def test_points_of_a_sweep_are_tasks(on_one):
    home = on_one.path.parents[1]
    lab = labs.open_lab(home, on_one.run_id, 1)
    points = [Point(merge=MergeConfig(alpha=alpha), num_questions=4) for alpha in (0.3, 0.7)]
    labs.ask(lab, *points)
    wait_until(lambda: not requests_left(lab), MOMENT_S)
    assert labs.observed(lab)["error"] is None
    there = {row["point_id"]: row["scores"] for row in read_lines(lab.points)[0]}
    end_group(lab, 0.0)
    config = read_json(lab.config)
    alone = LabDir(home / "labs" / "alone")
    write_json(alone.config, config | {"ray": None})
    labs.ask(alone, *points)
    wait_until(lambda: not requests_left(alone), MOMENT_S)
    end_group(alone, 0.0)
    assert there == {row["point_id"]: row["scores"] for row in read_lines(alone.points)[0]}
    assert len(there) == 2


def test_four_workers_behind_a_storage_do_too(nodes, here_alone, home):
    storage = f"file://{home}/storage"
    run = on_the_cluster(nodes, home, **{"ray.replicas": 4, "ray.storage": storage, "analyze.enabled": False})
    status, error = wait_for_end(home, run.run_id, MOMENT_S)
    assert status == "done", error
    assert numbers(run) == without_analysis(here_alone)
    fetched = {path.parent.name.rpartition("-")[0] for path in nodes.cache.glob("checkpoints/*/.manifest")}
    assert fetched == {"model", "checkpoint"}  # the workers had the base, and what was made, from there


def test_a_run_outlives_its_launcher_a_stop_and_two_nodes(nodes, here_alone, home):
    run = on_the_cluster(nodes, home, **{"ray.replicas": 2, "analyze.enabled": False})
    wait_until(lambda: read_lines(run.phase(0, "evaluate").outcomes)[0], MOMENT_S)
    follower = read_json(run.process)["pid"]
    os.kill(follower, signal.SIGKILL)
    wait_until(lambda: (read_json(run.process) or {"pid": follower})["pid"] != follower, MOMENT_S)
    wait_until(lambda: read_lines(run.phase(1, "sample").solutions)[0], MOMENT_S)
    nodes.kill_the_other()
    wait_until(lambda: run.phase(1, "sft").job.exists(), MOMENT_S)
    launch.stop(home, run.run_id)
    assert launch.observed_status(run)[0] == "stopped"
    jobs = ray.job_submission.JobSubmissionClient(nodes.dashboard)
    mine = [job.submission_id for job in jobs.list_jobs() if (job.submission_id or "").startswith(run.run_id)]
    assert len(mine) == 1  # one job, whoever followed it
    wait_until(lambda: jobs.get_job_status(mine[0]) in ("STOPPED", "SUCCEEDED"))
    wait_until(lambda: not queueing.tickets(home))
    nodes.add()
    launch.resume(home, run.run_id)
    wait_until(lambda: read_lines(run.phase(1, "evaluate").outcomes)[0], MOMENT_S)
    nodes.kill_the_other()
    status, error = wait_for_end(home, run.run_id, MOMENT_S)
    nodes.add()
    assert status == "done", error
    assert "is lost" in run.phase(1, "sample").log.read_text() + run.phase(1, "evaluate").log.read_text()
    assert numbers(run) == without_analysis(here_alone)


def test_a_stop_while_its_follower_writes_the_store_is_no_failure(nodes, home):
    queueing.change_settings(home, paused=True)
    config = config_for(**{"on": "ray", "ray.address": nodes.dashboard, "ray.replicas": 1})
    run = find_run(home, launch.enqueue([config], home)[0])
    much_to_record(run)
    queueing.change_settings(home, paused=False)
    wait_for_writing(run)
    launch.ask_stop(home, run.run_id)
    assert wait_for_end(home, run.run_id, MOMENT_S) == ("stopped", None)
    wait_until(lambda: not queueing.tickets(home))
    assert not read_lines(queueing.QueueDir.of(home).alerts)[0]


def test_zero_3_trains_in_two_workers(nodes, home):
    pytest.importorskip("deepspeed")
    alone = {"data.real_share": 1.0, "analyze.enabled": False, "method": "vanilla", "eval_questions": 4}
    run = on_the_cluster(nodes, home, **alone | {"sft.zero": 3, "ray.workers": 2})
    status, error = wait_for_end(home, run.run_id, MOMENT_S)
    assert status == "done", error
    summary = read_json(run.phase(1, "sft").result)["summary"]
    assert (summary["zero_stage"], summary["num_processes"]) == (3, 2)
    losses = [row["value"] for row in read_lines(run.phase(1, "sft").events)[0] if row["name"] == "loss"]
    assert losses[-1] < losses[0]


def test_what_the_cluster_lacks_is_said_before_anything_is_queued(nodes, home):
    with pytest.raises(ValueError, match="no node of the cluster has more than 0 GPUs: lower it"):
        on_the_cluster(nodes, home, **{"engine.tensor_parallel": 4})
    with pytest.raises(ValueError, match="gpus is 8, and the cluster has 0"):
        on_the_cluster(nodes, home, gpus=8)
    with pytest.raises(ValueError, match=r"no Ray dashboard answers at http://127.0.0.1:9 .*must be open from here"):
        launch.launch(config_for(**{"on": "ray", "ray.address": "http://127.0.0.1:9"}), home)
    assert not list((home / "runs").glob("2*"))


def test_a_node_that_was_lost_a_moment_ago_is_left_out_and_named(nodes, home):
    config = config_for(**{"on": "ray", "ray.address": nodes.dashboard})
    lost = nodes.other.node_ip_address
    nodes.kill_the_other()
    try:
        remarks = checks.look_around(config, home)
    finally:
        nodes.add()
    assert remarks == [f"node {lost} of the cluster is lost: it is left out"]


def test_a_cluster_that_was_named_goes_before_that_of_the_environment(nodes, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    assert client.client(nodes.dashboard).list_jobs() is not None


def node(address="10.0.0.1", **changes) -> dict:
    versions = {"workbench": "0.1.0", "torch": "2.13.0"}
    return {
        "address": address,
        "cpus": 4,
        "gpus": 0,
        "sees_home": True,
        "storage": None,
        "versions": versions,
    } | changes


def test_where_no_node_answers_that_is_said():
    seen = {"nodes": [], "silent": [{"address": "10.0.0.1", "why": "is lost"}], "sees_home": True, "storage": None}
    (problem,) = checks.problems(config_for(on="ray"), Path("/home"), seen)
    assert problem == "no node of the cluster answers (10.0.0.1 is lost): see `ray status` on its head"


@pytest.mark.parametrize(
    ("last_words", "said"),
    [
        ("/usr/bin/python: No module named workbench.cluster.probe", "install the same version on every node"),
        ("ImportError: cannot import name 'ask_each' from 'workbench.cluster'", "install the same version"),
        ("sh: 1: exec: python: not found", "install the same version on every node"),
        ("node 10.0.0.2: OSError: [Errno 116] Stale file handle", "could not be looked at .node 10.0.0.2: OSError"),
        ("ray.exceptions.LocalRayletDiedError: The task's local raylet died.", "see `ray status` on its head"),
    ],
)
def test_why_the_nodes_could_not_be_asked_is_what_was_found(last_words, said):
    found = checks.why_not("http://head:8265", last_words)
    assert re.search(said, found) and last_words in found
    assert ("install" in found) == ("install" in said)


@pytest.mark.parametrize(
    ("nodes_seen", "settings", "said"),
    [
        ([node(), node("10.0.0.2", sees_home=False)], {}, "node 10.0.0.2 of the cluster does not see /home: put"),
        ([node(), node(sees_home=False)], {"ray.storage": "s3://bucket/x"}, None),
        ([node(storage="NoCredentialsError: no keys")], {"ray.storage": "s3://bucket/x"}, "put its keys into"),
        (
            [node(), node("b", versions={"workbench": "0.1.0", "torch": "2.12.0"})],
            {},
            "has torch 2.13.0 and node b 2.12",
        ),
        ([node(), node("b", versions={"workbench": "0.1.0", "torch": "2.13.0", "vllm": "0.20"})], {}, "vllm none and"),
        ([node(), node(gpus=8)], {"engine.tensor_parallel": 16}, "no node of the cluster has more than 8 GPUs"),
        ([node(), node()], {"threads": 8}, "threads is 8, and no node of the cluster has more than 4 cores"),
        ([node(), node()], {"threads": 4, "sft.zero": 3, "ray.workers": 3}, "asks for 3 workers .* room for 2"),
        ([node(gpus=8), node(gpus=8)], {"sft.zero": 3, "ray.workers": 16}, None),
    ],
)
def test_each_thing_that_nodes_lack_is_a_sentence_with_its_cure(nodes_seen, settings, said):
    seen = {"nodes": nodes_seen, "sees_home": True, "storage": None}
    found = list(checks.problems(config_for(**{"on": "ray"} | settings), Path("/home"), seen))
    assert found == [] if said is None else re.search(said, found[0])
