"""Three agents on a real broker: what they answer, and how inputs get in."""

from __future__ import annotations

import json
import subprocess
import sys

import forked
import numpy as np
import pytest

from distree import criteria
from distree.bundle.preprocessing import Preprocessor
from distree.bundle.runtimes import make_runtime
from distree.criteria.base import ExitEvidence
from distree.thresholds import NEVER

pytestmark = pytest.mark.any_broker


def offline(bundle, images, thresholds=None, criterion=None):
    """(class id, exit) of each image by the plainest loop over the same segments."""
    made = criteria.make_criterion(criterion or bundle.criterion)
    limits = [*(thresholds or bundle.thresholds), -float("inf")]
    runtime, prepare, answers = make_runtime(bundle), Preprocessor(bundle.manifest), []
    for image in images:
        tensor, memory = prepare.tensor(image), ()
        for k, limit in enumerate(limits):
            output = runtime.run(k, tensor)
            score = made.score(ExitEvidence(logits=output.logits, memory=memory))
            if score.value >= limit or k == len(limits) - 1:
                answers.append((int(np.argmax(output.logits)), k))
                break
            tensor, memory = output.features, score.memory
    return answers


def replay(samples_path, limit, **changes):
    return {
        "deadline_ms": 20000,
        "min_retry_ms": 5000,
        "source": {"kind": "replay", "path": str(samples_path), "max_inputs": limit},
        **changes,
    }


@pytest.mark.parametrize("codec", ["raw", "zlib"])
def test_served_answers_equal_the_offline_ones(site, bundle, images, samples_path, codec):
    for device, stage in (("b1", 1), ("b2", 2)):
        site.agent(device, [stage], codec=codec)
    site.agent("cam", [0], codec=codec, origin=replay(samples_path, 200))
    site.watch.until(lambda: len(site.watch.final()) == 200, "200 results")
    final = site.watch.final()
    served = [(final[str(i)].class_id, final[str(i)].exit) for i in range(200)]
    assert served == offline(bundle, images[:200])
    assert {exit for _, exit in served} == {0, 1, 2}
    assert {result.reason for result in final.values()} == {"confident", "last"}
    assert len(site.watch.results) == 200
    assert not site.watch.dead


def test_one_board_may_hold_all_stages_and_two_pipelines(site, bundle, images, samples_path):
    second = {"name": "second", "bundle": "fashion", "stages": [0, 1, 2], "origin": replay(samples_path, 20)}
    site.agent("cam", [0, 1, 2], origin=replay(samples_path, 20), pipelines=[second])
    site.watch.until(lambda: len(site.watch.results) == 40, "40 results")
    for name in ("fashion", "second"):
        mine = {result.input: result for result in site.watch.results if result.pipeline == name}
        assert [(mine[str(i)].class_id, mine[str(i)].exit) for i in range(20)] == offline(bundle, images[:20])


def test_boards_of_one_stage_share_its_load(site, samples_path, bundle):
    site.plan(bundle, 1, (NEVER, NEVER))
    for device, stage in (("b1", 1), ("b1-too", 1), ("b2", 2)):
        site.agent(device, [stage])
    site.agent("cam", [0], origin=replay(samples_path, 100))
    site.watch.until(lambda: len(site.watch.final()) == 100, "100 results")
    helpers = [result.hops[1].device for result in site.watch.final().values()]
    assert min(helpers.count("b1"), helpers.count("b1-too")) > 10


def test_a_result_says_how_it_came_about(site, bundle, images):
    site.plan(bundle, 3, (NEVER, NEVER))
    for device, stage in (("b1", 1), ("b2", 2)):
        site.agent(device, [stage])
    site.agent("cam", [0], origin={"deadline_ms": 20000, "source": {"kind": "mqtt"}})
    site.submit("mine-1", "shoe.png", images[0])
    site.watch.until(lambda: bool(site.watch.raw_results), "a result")
    (result,) = site.watch.raw_results
    assert {key: result[key] for key in ("schema", "request", "input", "site", "pipeline", "origin")} == {
        "schema": "distree.result/1",
        "request": "mine-1",
        "input": "shoe.png",
        "site": "test",
        "pipeline": "fashion",
        "origin": "cam",
    }
    assert (result["exit"], result["reason"], result["final"], result["late"]) == (2, "last", True, False)
    assert (result["epoch"], result["model"], result["revision"]) == (3, "fashion", bundle.revision)
    assert [(hop["device"], hop["stage"]) for hop in result["hops"]] == [("cam", 0), ("b1", 1), ("b2", 2)]
    assert all(hop["compute_ms"] > 0 for hop in result["hops"])
    assert result["latency_ms"] > sum(hop["compute_ms"] for hop in result["hops"])
    assert result["label"] == bundle.labels[result["class_id"]]
    # The same input again, as at-least-once delivery may bring it, is not answered twice.
    site.submit("mine-1", "shoe.png", images[0])
    site.submit("mine-2", "shoe.png", images[0])
    site.watch.until(lambda: len(site.watch.results) == 2, "the second result")
    assert [result.request for result in site.watch.results] == ["mine-1", "mine-2"]


def test_a_new_plan_swaps_the_thresholds(site, bundle, images):
    site.agent("cam", [0, 1, 2], origin={"source": {"kind": "mqtt"}})
    for epoch, thresholds, exit in [(1, (NEVER, NEVER), 2), (2, (0.0, 0.0), 0), (3, (NEVER, 0.0), 1)]:
        site.plan(bundle, epoch, thresholds)
        site.watch.until(
            lambda e=epoch: "cam" in site.watch.telemetry and site.watch.telemetry["cam"].pipelines[0].epoch == e
        )
        site.submit(f"r{epoch}", "x", images[0])
        site.watch.until(lambda e=epoch: len(site.watch.results) == e)
        assert (site.watch.results[-1].epoch, site.watch.results[-1].exit) == (epoch, exit)


def test_files_in_a_folder_are_answered_and_put_away(site, bundle, images):
    pillow = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    inbox = site.folder / "inbox"
    inbox.mkdir()
    np.save(inbox / "a.npy", images[0])
    pillow.fromarray(images[1][..., 0]).save(inbox / "b.png")
    pillow.fromarray(images[2][..., 0]).resize((56, 56)).save(inbox / "c.jpg")
    site.agent("cam", [0, 1, 2], origin={"source": {"kind": "directory", "path": "inbox", "quiet_ms": 20}})
    site.watch.until(lambda: len(site.watch.final()) == 3, "3 results")
    # Of these the kernel tells, so they need not be given time to be finished.
    (inbox / "broken.png").write_bytes(b"\x89PNG and no more")
    np.save(inbox / "wrong.npy", np.zeros((3, 3), np.uint8))
    site.watch.until(lambda: len(site.watch.dead) == 2, "refusals")
    site.watch.until(lambda: len(list((inbox / "done").glob("*"))) == 3, "files in done/")
    site.watch.until(lambda: len(list((inbox / "failed").glob("*"))) == 2, "files in failed/")
    assert sorted(path.name for path in (inbox / "failed").iterdir()) == ["broken.png", "wrong.npy"]
    final = site.watch.final()
    answers = offline(bundle, images[:2])
    assert [(final[name].class_id, final[name].exit) for name in ("a.npy", "b.png")] == answers
    assert sorted(letter.reason for letter in site.watch.dead) == ["image", "shape"]


def test_raw_bytes_without_a_name_are_inputs_too(site, images):
    site.agent("cam", [0, 1, 2], origin={"source": {"kind": "mqtt"}})
    site.watch.publish("distree/1/test/pipeline/fashion/input/cam", images[3].tobytes())
    site.watch.until(lambda: len(site.watch.results) == 1, "a result")


def test_submit_prints_results_as_json_lines(site, images):
    site.agent("cam", [0, 1, 2], origin={"source": {"kind": "mqtt"}})
    paths = [site.folder / f"{index}.npy" for index in range(40)]
    for path, image in zip(paths, images, strict=False):
        np.save(path, image)
    command = ["submit", "--broker", f"127.0.0.1:{site.broker.port}"]
    where = ["--site", "test", "--pipeline", "fashion", "--origin", "cam", *map(str, paths)]
    done = forked.run([*command, *where])
    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["input"] for line in done.stdout.splitlines()} == set(map(str, paths))
    wrong = [*where[:5], "nobody", "--timeout", "0.5", str(paths[0])]
    done = forked.run([*command, *wrong])
    assert done.returncode == 1
    assert "distree/1/test/pipeline/fashion/input/nobody" in done.stderr or "the agent 'nobody'" in done.stderr
    assert "is running" in done.stderr


def test_results_follows_a_site(site, images):
    site.agent("cam", [0, 1, 2], origin={"source": {"kind": "mqtt"}})
    command = ["results", "--broker", f"127.0.0.1:{site.broker.port}", "--site", "test", "--count", "2"]
    process = subprocess.Popen([sys.executable, "-m", "distree", *command], stdout=subprocess.PIPE, text=True)
    index = 0
    while process.poll() is None:
        site.submit(f"r{index}", "x", images[0])
        site.watch.until(lambda i=index: len(site.watch.results) > i)
        index += 1
    lines = process.communicate()[0].splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["schema"] == "distree.result/1"


def test_results_says_what_came_when_its_time_is_over(site, images):
    site.agent("cam", [0, 1, 2], origin={"source": {"kind": "mqtt"}})
    where = ["results", "--broker", f"127.0.0.1:{site.broker.port}", "--timeout", "1", "--site"]
    wrong = forked.run([*where, "tset"])
    assert (wrong.returncode, wrong.stdout) == (1, "")
    told = "distree: 0 results came within 1 s; see which boards of site tset are there: distree top --site tset\n"
    assert wrong.stderr.endswith(told)
    command = [sys.executable, "-m", "distree", *where[:3], "--timeout", "6", "--site", "test", "--count", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert "waiting for results" in process.stderr.readline()
        site.submit("one", "x", images[0])
        assert process.stdout.readline()
        assert process.stderr.read() == "distree: 1 of 2 results came within 6 s\n"
        assert process.wait(20) == 1


def test_sigterm_drains(site, samples_path):
    process = site.agent("cam", [0, 1, 2], origin=replay(samples_path, 1000))
    site.watch.until(lambda: len(site.watch.results) > 20, "some results")
    process.terminate()
    assert process.wait(20) == 0
    site.watch.until(lambda: site.watch.states["cam"] == "disconnected", "goodbye")
    final = site.watch.telemetry["cam"].pipelines[0].origin
    site.watch.until(lambda: len(site.watch.final()) >= final.accepted, "every accepted input's result")
    assert final.answered == final.accepted == len(site.watch.results)
    assert ("cam", "draining") in site.watch.history
    assert "lost" not in site.watch.states.values()
