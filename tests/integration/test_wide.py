"""Wide stages with real agents on a real broker: what they answer, what they run, and what they do when boards fail."""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
import zlib
from collections import Counter

import msgpack
import numpy as np
import pytest
from request_samples import changed, embedding_of, repacked, stage_message

from distree import criteria, tensors, topics
from distree.bundle.preprocessing import Preprocessor
from distree.bundle.runtimes import make_runtime
from distree.criteria.base import ExitEvidence
from distree.messages.codec import encode
from distree.messages.limits import MAX_MESSAGE_BYTES
from distree.messages.request import Decision, Hop, RouteStop
from distree.messages.result import MissingBranch
from distree.topics import Kind

pytestmark = pytest.mark.any_broker

SITE, PIPELINE = "test", "fashion"
COUNT = 320


# ---------------------------------------------------------------- the plainest loop over the same segments


class Offline:
    """All segments of a wide bundle, one after the other in this process."""

    def __init__(self, bundle, criterion=None, thresholds=None):
        self.bundle = bundle
        self.counts = bundle.branch_counts
        self.criterion = criteria.make_criterion(criterion or bundle.criterion, bundle.criterion_parameters())
        self.thresholds = {row.missing: row.thresholds for row in bundle.manifest.exits.masked}
        self.thresholds[()] = thresholds or bundle.thresholds
        self.plain = make_runtime(bundle, [k for k, count in enumerate(self.counts) if not count], fuse=True)
        wide = [k for k, count in enumerate(self.counts) if count]
        self.branches = [make_runtime(bundle, wide, branch=b) for b in range(max(self.counts))]
        self.prepare = Preprocessor(bundle.manifest)

    def answers(self, images, missing=()):
        """(class id, exit) of each image, without the branches in `missing`."""
        return [self._answer(image, [missing] * len(self.counts)) for image in images]

    def possible(self, image):
        """The answers of an exit that heard all branches, if one of them may have been late at each exit before it."""
        masks = itertools.product(self.thresholds, repeat=len(self.counts))
        return {answer for each in masks for answer in [self._answer(image, each)] if not each[answer[1]]}

    def _answer(self, image, masks):
        features, memory = [self.prepare.tensor(image)] * max(self.counts), ()
        for k, missing in enumerate(masks):
            threshold = [*self.thresholds[missing], -math.inf][k]
            output, features = self._exit(k, features, missing)
            score = self.criterion.score(
                ExitEvidence(logits=output.logits, exit=k, embeddings=output.embeddings, memory=memory)
            )
            if score.value >= threshold:
                return criteria.confidence(output.logits)[0], k
            memory = score.memory
        raise AssertionError("the last exit is always taken")

    def _exit(self, k, features, missing):
        width = max(self.counts)
        if not self.counts[k]:
            output = self.plain.run(k, features[0])
            return output, [output.features] * width
        ran = [self.branches[b].run(k, features[b]) for b in range(self.counts[k])]
        output = self.plain.fuse(k, [None if b in missing else one.embedding for b, one in enumerate(ran)])
        if output.features is not None:
            return output, [output.features] * width
        return output, [one.features for one in ran]


def origin(path=None, limit=COUNT, rate_hz=None, **changes):
    source = {"kind": "mqtt"}
    if path is not None:
        source = {"kind": "replay", "path": str(path), "max_inputs": limit, "rate_hz": rate_hz}
    return {"deadline_ms": 20000, "min_retry_ms": 5000, "source": source, **changes}


def start_wide(site, bundle, **roles):
    """The branches of three wide stages, on boards b0 and b1."""
    site.bundle = str(bundle.path)
    for branch in range(2):
        site.agent(f"b{branch}", [0, 1, 2], branch=branch, **roles)


def start_mixed(site, bundle):
    site.bundle = str(bundle.path)
    for branch in range(3):
        site.agent(f"b{branch}", [1, 2], branch=branch)
    site.agent("last", [3])


def served(site, count=COUNT):
    final = site.watch.final()
    return [(final[str(index)].class_id, final[str(index)].exit) for index in range(count)]


def check_all_answered(site, expected):
    """Every input is answered once and as expected, and nothing was refused."""
    site.watch.until(lambda: len(site.watch.final()) == len(expected), f"{len(expected)} results")
    odd = [one for one in site.watch.results if one.missing or one.reason not in ("confident", "last")]
    assert not odd
    assert served(site, len(expected)) == expected
    assert {result.reason for result in site.watch.results} == {"confident", "last"}
    assert len(site.watch.results) == len(expected)
    assert not site.watch.dead


# ---------------------------------------------------------------- served equals evaluated


@pytest.mark.parametrize("fuser", [None, "hub"])
@pytest.mark.parametrize("mode", ["gated", "eager"])
def test_a_wide_bundle_answers_as_it_does_offline(site, tiny_wide, tiny_images, tiny_path, mode, fuser):
    # Longer than min_retry_ms: on a busy machine an input is sent again rather than answered without a branch.
    start_wide(site, tiny_wide)
    if fuser is not None:
        site.agent(fuser, [], fuse=True, branch_timeout_ms=15000)
    how = {"mode": mode} if fuser is None else {"mode": mode, "fuser": fuser}
    site.agent("cam", [], origin=origin(tiny_path, **how), branch_timeout_ms=15000)
    expected = Offline(tiny_wide).answers(tiny_images[:COUNT])
    assert set(Counter(exit for _, exit in expected)) == {0, 1, 2}
    check_all_answered(site, expected)

    fusing = fuser or "cam"
    boards = ("b0", "b1", fusing)
    site.watch.until_reported("cam", *boards)
    reach = [sum(exit >= k for _, exit in expected) for k in range(3)]
    fusions = site.watch.fusions(fusing)
    # What was sent again, when a connection broke on a busy machine say, may have been fused twice.
    again = site.watch.telemetry["cam"].pipelines[0].origin.resent
    assert all(reach[k] <= fusions[k].fused <= reach[k] + again for k in range(3)), (reach, fusions, again)
    assert [fusions[k].exited for k in range(3)] == [sum(exit == k for _, exit in expected) for k in range(3)]
    for board in ("b0", "b1"):
        stages = site.watch.stages(board)
        ran = [stages[k].forwarded for k in range(3)]
        wasted = [stages[k].wasted for k in range(3)]
        of_use = [runs - vain for runs, vain in zip(ran, wasted, strict=True)]
        assert all(reach[k] <= of_use[k] <= reach[k] + again for k in range(3)), (reach, ran, wasted, again)
        assert wasted[0] <= again
        assert all(stages[k].bytes_out > ran[k] * 6 for k in range(3) if mode == "gated")
        if mode == "gated":
            assert max(wasted) <= again
    devices = {hop.device for result in site.watch.results for hop in result.hops}
    assert devices == set(boards)


def test_eager_branches_run_in_vain_what_is_answered_before(site, tiny_wide, tiny_path):
    """With all inputs answered at the first exit, each run beyond it is a wasted one, and counted."""
    site.plan(tiny_wide, 1, (0.0, 0.0))
    start_wide(site, tiny_wide)
    site.agent("cam", [], origin=origin(tiny_path, 200, mode="eager"), branch_timeout_ms=5000)
    site.watch.until(lambda: len(site.watch.final()) == 200, "200 results")
    assert {result.exit for result in site.watch.results} == {0}
    site.watch.until_reported("cam", "b0", "b1")
    again = site.watch.telemetry["cam"].pipelines[0].origin.resent
    for board in ("b0", "b1"):
        stages = site.watch.stages(board)
        assert 200 <= stages[0].forwarded <= 200 + again
        assert [stages[k].wasted for k in (1, 2)] == [stages[k].forwarded for k in (1, 2)]
    assert sum(site.watch.stages(board)[1].wasted for board in ("b0", "b1")) > 0


@pytest.mark.parametrize(("mode", "fuser"), [("gated", None), ("eager", None), ("gated", "hub")])
def test_plain_and_wide_stages_in_one_bundle_answer_as_they_do_offline(
    site, tiny_mixed, tiny_images, tiny_path, mode, fuser
):
    start_mixed(site, tiny_mixed)
    if fuser is not None:
        site.agent(fuser, [], fuse=True, branch_timeout_ms=5000)
    how = {"mode": mode} if fuser is None else {"mode": mode, "fuser": fuser}
    site.agent("cam", [0], origin=origin(tiny_path, **how), branch_timeout_ms=5000)
    expected = Offline(tiny_mixed).answers(tiny_images[:COUNT])
    assert {exit for _, exit in expected} == {0, 1, 2, 3}
    check_all_answered(site, expected)
    site.watch.until_reported("b0", "b1", "b2", "last")
    reach = [sum(exit >= k for _, exit in expected) for k in range(4)]
    for board in ("b0", "b1", "b2"):

        def forwarded(board=board):
            stages = site.watch.stages(board)
            return [stages[k].forwarded - stages[k].wasted for k in (1, 2)]

        # On a busy machine a board may still be at what has long been answered.
        site.watch.until(lambda count=forwarded: count() == reach[1:3], f"{board} to have forwarded {reach[1:3]}")
        stages = site.watch.stages(board)
        assert stages[1].wasted == 0
        assert stages[2].wasted == 0 or mode == "eager"
    assert site.watch.stages("last")[3].received == reach[3]


def test_a_criterion_with_a_memory_and_parameters_is_served_as_it_is_offline(site, tiny_wide, tiny_images, tiny_path):
    thresholds = (-1.02, -1.4)
    expected = Offline(tiny_wide, "feature_difference", thresholds).answers(tiny_images[:200])
    assert min(Counter(exit for _, exit in expected).values()) > 10
    assert len({exit for _, exit in expected}) == 3
    site.plan(tiny_wide, 1, thresholds, criterion="feature_difference")
    start_wide(site, tiny_wide)
    site.agent("cam", [], origin=origin(tiny_path, 200), branch_timeout_ms=5000)
    check_all_answered(site, expected)


def test_an_origin_may_run_a_branch_itself(site, tiny_wide, tiny_images, tiny_path):
    site.bundle = str(tiny_wide.path)
    site.agent("b1", [0, 1, 2], branch=1)
    site.agent("cam", [0, 1, 2], branch=0, origin=origin(tiny_path, 150), branch_timeout_ms=5000)
    check_all_answered(site, Offline(tiny_wide).answers(tiny_images[:150]))


def test_boards_of_one_branch_share_its_load(site, tiny_wide, tiny_images, tiny_path):
    start_wide(site, tiny_wide)
    site.agent("b1-too", [0, 1, 2], branch=1)
    site.agent("cam", [], origin=origin(tiny_path, 200), branch_timeout_ms=5000)
    check_all_answered(site, Offline(tiny_wide).answers(tiny_images[:200]))
    site.watch.until_reported("b0", "b1", "b1-too")
    runs = {board: site.watch.stages(board)[0].forwarded for board in ("b0", "b1", "b1-too")}
    assert runs["b0"] == runs["b1"] + runs["b1-too"] == 200
    assert min(runs.values()) > 20


# ---------------------------------------------------------------- boards that fail

FALLEN_BACK = {"deadline", "fallback"}
WITHOUT_B1 = {(MissingBranch(branch=1, device=device),) for device in ("b1", None)}
"""While the board is asked for it in vain, and once it is asked no more."""


def streamed(path, **changes):
    """An origin with a hundred inputs a second without end, so that what happens to a board meets some of them."""
    made = origin(path, COUNT, 100, **{"deadline_ms": 2000, "min_retry_ms": 300, **changes})
    made["source"]["repeat"] = True
    return made


def end_stream(site):
    """Have the origin finish what it accepted and end; return the final results, one of each input, with an answer."""
    process, watch = site.processes["cam"], site.watch
    process.terminate()
    assert process.wait(30) == 0, site.log("cam")
    watch.until(lambda: watch.states["cam"] == "disconnected", "goodbye")
    books = watch.telemetry["cam"].pipelines[0].origin
    assert books.answered == books.accepted
    watch.until(lambda: sum(result.final for result in watch.results) >= books.accepted, "every result")
    finals = [result for result in watch.results if result.final]
    assert len(finals) == len({result.request for result in finals}) == books.accepted
    assert all(result.label for result in finals)
    # By the deadline of two seconds, and what a busy machine adds.
    assert all(result.latency_s < 6.0 for result in finals)
    return finals


def by(result):
    """The boards that took part in an answer."""
    return {hop.device for hop in result.hops}


def check_as_offline(bundle, results, images, missing=()):
    """The answers are those that the segments give without the missing branches; more than a few are looked at."""
    assert len(results) > 20
    expected = Offline(bundle).answers([images[int(result.input)] for result in results], missing)
    assert [(result.class_id, result.exit) for result in results] == expected


def sound(results):
    """Without those that were answered in a hurry."""
    return [result for result in results if result.reason not in FALLEN_BACK]


@pytest.mark.parametrize("mode", ["gated", "eager"])
def test_a_killed_branch_costs_no_answer_and_is_told_as_missing(site, tiny_wide, tiny_images, tiny_path, mode):
    watch = site.watch
    start_wide(site, tiny_wide)
    site.agent("cam", [], origin=streamed(tiny_path, mode=mode), branch_timeout_ms=100)
    watch.until(lambda: sum(r.missing == () for r in watch.results) > 60, "the first results")
    site.kill("b1")
    watch.until(lambda: watch.states.get("b1") == "lost", "the will")
    watch.until(lambda: sum(r.missing in WITHOUT_B1 for r in watch.results) > 60, "answers without the branch")
    heard = len(watch.results)
    site.agent("b1", [0, 1, 2], branch=1)
    watch.until(
        lambda: sum(r.missing == () and "b1" in by(r) for r in watch.results[heard:]) > 60, "answers with it again"
    )
    finals = end_stream(site)
    # What was answered without the branch says so, and is what the other branch and the masked thresholds give.
    alone = [result for result in sound(finals) if "b1" not in by(result)]
    assert {result.missing for result in alone} <= WITHOUT_B1
    check_as_offline(tiny_wide, alone, tiny_images, missing=(1,))
    # On a busy machine a branch may be late at one exit and be heard at the next.
    offline = Offline(tiny_wide)
    for result in sound(finals):
        if not result.missing:
            assert (result.class_id, result.exit) in offline.possible(tiny_images[int(result.input)])
    counted = sum(fusion.missing[1] for fusion in watch.fusions("cam").values())
    assert counted >= len(alone)


@pytest.mark.parametrize("mode", ["gated", "eager"])
def test_a_killed_fusing_board_costs_no_answer(site, tiny_wide, tiny_images, tiny_path, mode):
    watch = site.watch
    start_wide(site, tiny_wide)
    site.agent("hub", [], fuse=True, branch_timeout_ms=500)
    site.agent("cam", [], origin=streamed(tiny_path, mode=mode, fuser="hub"), branch_timeout_ms=500)
    watch.until(lambda: sum("hub" in by(result) for result in watch.results) > 60, "the first results")
    assert not any("cam" in by(result) for result in watch.results)
    site.kill("hub")
    watch.until(lambda: watch.states.get("hub") == "lost", "the will")
    watch.until(lambda: sum("cam" in by(r) for r in watch.results) > 20, "answers that the origin fused itself")
    # What was with it is sent anew as soon as the broker says that it is gone, and no deadline is waited for.
    assert not FALLEN_BACK & {result.reason for result in watch.results}
    heard = len(watch.results)
    site.agent("hub", [], fuse=True, branch_timeout_ms=500)
    watch.until(lambda: sum("hub" in by(r) for r in watch.results[heard:]) > 60, "answers that it fused again")
    finals = [result for result in sound(end_stream(site)) if not result.missing]
    check_as_offline(tiny_wide, [result for result in finals if "cam" in by(result)], tiny_images)
    check_as_offline(tiny_wide, [result for result in finals if "hub" in by(result)], tiny_images)


def test_a_fusing_board_that_stays_dead_is_done_without(site, tiny_wide, tiny_images, tiny_path):
    watch = site.watch
    start_wide(site, tiny_wide)
    site.agent("hub", [], fuse=True, branch_timeout_ms=500)
    site.agent("cam", [], origin=streamed(tiny_path, fuser="hub", min_retry_ms=100), branch_timeout_ms=500)
    watch.until(lambda: sum("hub" in by(result) for result in watch.results) > 60, "the first results")
    site.kill("hub")
    watch.until(lambda: watch.states.get("hub") == "lost", "the will")
    heard = len(watch.results)
    watch.until(lambda: len(watch.results) > heard + 300, "300 more results")
    # Not each of them first asks the dead board and waits for its silence.
    assert sum(result.attempt == 1 and "cam" in by(result) for result in watch.results[heard:]) > 200
    finals = end_stream(site)
    check_as_offline(tiny_wide, [r for r in sound(finals) if "cam" in by(r) and not r.missing], tiny_images)


def test_an_origin_whose_fusing_board_never_was_answers_by_itself(site, tiny_wide, tiny_images, tiny_path):
    start_wide(site, tiny_wide)
    site.agent("cam", [], origin=streamed(tiny_path, fuser="hub"), branch_timeout_ms=500)
    site.watch.until(lambda: len(site.watch.results) > 60, "the first results")
    finals = end_stream(site)
    check_as_offline(tiny_wide, [result for result in sound(finals) if not result.missing], tiny_images)


def test_a_slow_branch_is_masked_and_comes_back(site, tiny_wide, tiny_path):
    watch = site.watch
    start_wide(site, tiny_wide)
    site.agent("cam", [], origin=streamed(tiny_path), branch_timeout_ms=100)
    watch.until(lambda: sum(r.missing == () for r in watch.results) > 40, "the first results")
    slow = site.processes["b1"]
    slow.send_signal(signal.SIGSTOP)
    try:
        watch.until(lambda: sum(r.missing in WITHOUT_B1 for r in watch.results) > 40, "answers without it")
    finally:
        slow.send_signal(signal.SIGCONT)
    stopped = len(watch.results)
    watch.until(lambda: sum(r.missing == () and "b1" in by(r) for r in watch.results[stopped:]) > 40, "it to be back")
    end_stream(site)
    # Nobody saw it leave: it was masked by its silence alone, and heard again by its embeddings alone.
    assert ("b1", "lost") not in watch.history
    assert watch.fusions("cam")[0].late > 0
    # Each at the exit that answered it.
    assert sum(fusion.missing[1] for fusion in watch.fusions("cam").values()) >= 40


def test_all_branches_gone_leaves_the_best_guess_of_the_stage_before(site, tiny_mixed, tiny_path):
    site.bundle = str(tiny_mixed.path)
    site.agent("cam", [0], origin=streamed(tiny_path, deadline_ms=700, min_retry_ms=100), branch_timeout_ms=100)
    site.watch.until(lambda: any(result.reason in FALLEN_BACK for result in site.watch.results), "a fallback")
    finals = end_stream(site)
    assert {result.exit for result in finals} == {0}
    assert {result.reason for result in finals} <= FALLEN_BACK | {"confident"}


# ---------------------------------------------------------------- hostile messages


def topic_to(device, kind, sender):
    return topics.to_board(SITE, PIPELINE, kind, device, sender)


class Siege:
    """A site of a wide bundle, its good inputs and the bad messages among them."""

    def __init__(self, site, bundle, images):
        self.site, self.images, self.offline = site, images, Offline(bundle)
        self.expected = Counter()
        self.asked = 0
        start_wide(site, bundle)
        site.agent("hub", [], fuse=True, branch_timeout_ms=5000)
        site.agent("cam", [], origin=origin(), branch_timeout_ms=5000)

    def ask(self):
        self.site.submit(f"good-{self.asked}", str(self.asked), self.images[self.asked])
        self.asked += 1

    def fire(self, topic, device, payload, reason):
        if len(payload) > MAX_MESSAGE_BYTES and self.site.watch.transport.protocol != "5":
            return  # nobody sends that over MQTT 3.1.1, where a broker cannot tell what it takes
        self.site.watch.publish(topic, payload)
        self.expected[device, topic, reason] += 1
        if len(payload) > MAX_MESSAGE_BYTES:
            self.site.watch.settle()

    def check(self):
        """Each bad message is told once, each good input answered as ever."""
        watch, total = self.site.watch, sum(self.expected.values())
        watch.until(lambda: len(watch.final()) == self.asked, f"{self.asked} answers")
        watch.until(lambda: len(watch.dead) >= total, f"{total} dead letters")
        watch.until_reported("b0", "b1", "hub", "cam")
        found = Counter((letter.device, letter.topic, letter.reason) for letter in watch.dead)
        assert found == self.expected
        assert served(self.site, self.asked) == self.offline.answers(self.images[: self.asked])
        for device in ("b0", "b1", "hub", "cam"):
            mine = sum(count for (board, _, _), count in self.expected.items() if board == device)
            assert watch.telemetry[device].dead_letters == mine
            assert self.site.processes[device].poll() is None, self.site.log(device)


@pytest.fixture
def siege(site, tiny_wide, tiny_images):
    return Siege(site, tiny_wide, tiny_images)


@pytest.fixture
def good(tiny_wide):
    """An embedding, a decision and an input of wide stages, each valid but for its request, of which nobody knows."""
    spec = tiny_wide.branch(0, 0)
    route = (RouteStop(stage=0, boards=("b0", "b1"), together=True),)
    given = {"revision": tiny_wide.revision, "budget_s": 3600.0, "fuser": "cam", "route": route}
    embedding = embedding_of(
        tensors.encode(np.zeros(spec.embedding.shape, np.int8)),
        device="b0",
        origin="cam",
        hops=(Hop(device="b0", stage=0, queue_s=0.0, compute_s=0.0),),
        **given,
    )
    decision = Decision(request="never-asked", token=embedding.context.token, stage=0, go=True)
    return embedding, decision, stage_message(tensors.encode(np.zeros(spec.input.shape, np.int8)), **given)


def wrong_embeddings(embedding):
    """(payload, reason) of what the fusing board must refuse."""
    packed = encode(embedding)

    def with_tensor(**changes):
        tensor = dataclasses.replace(embedding.tensor, **changes)
        return encode(dataclasses.replace(embedding, tensor=tensor))

    bomb = zlib.compress(bytes(8 << 20), 9)
    return [
        (packed, "request"),
        (with_tensor(shape=(1, 7), payload=bytes(7)), "shape"),
        (with_tensor(shape=(6,)), "shape"),
        (with_tensor(payload=bytes(5)), "size"),
        (with_tensor(dtype="uint8"), "dtype"),
        (with_tensor(codec="zlib", payload=bomb), "size"),
        (with_tensor(codec="zlib", payload=b"no stream"), "codec"),
        (with_tensor(codec="zlib", payload=zlib.compress(bytes(6))[:-3]), "size"),
        (repacked(packed, branch=2), "branch"),
        (repacked(packed, branch=64), "field"),
        (repacked(packed, stage=3), "branch"),
        (repacked(packed, stage=1), "request"),
        (repacked(packed, stage=99), "field"),
        (repacked(packed, revision="0" * 12), "revision"),
        (repacked(packed, fuser="hub"), "fuser"),
        (repacked(packed, origin="b0"), "fuser"),
        (repacked(packed, branch=1), "route"),
        (repacked(packed, route=msgpack.packb([])), "route"),
        (repacked(packed, route=msgpack.packb([[0, ["b1", "b0"]]])), "route"),
        (repacked(packed, route=msgpack.packb([[0, "b0"]])), "field"),
        (repacked(packed, device="b0/#"), "field"),
        (repacked(packed, device="b1"), "sender"),
        (repacked(packed, eager="yes"), "field"),
        (repacked(packed, memory=[math.nan]), "field"),
        (repacked(packed, spent_s=-1.0), "field"),
        (repacked(packed, v=1), "version"),
        (repacked(packed, kind="decision"), "kind"),
        (packed[:-1], "encoding"),
        (b"", "encoding"),
        (b"\xff garbage", "encoding"),
        (b"\x81" + bytes(MAX_MESSAGE_BYTES), "size"),
    ]


def wrong_decisions(decision):
    packed = encode(decision)
    return [
        (packed, "request"),
        (repacked(packed, go=False), "request"),
        (repacked(packed, token=b"guessed!"), "request"),
        (repacked(packed, token=b"short"), "field"),
        (repacked(packed, go=1), "field"),
        (repacked(packed, stage=-1), "field"),
        (repacked(packed, request="\x00"), "field"),
        (repacked(packed, v=0), "version"),
        (repacked(packed, kind="embedding"), "kind"),
        (packed + b"\x00", "encoding"),
        (b"", "encoding"),
        (b'{"go":true}', "encoding"),
        (b"\x81" + bytes(MAX_MESSAGE_BYTES), "size"),
    ]


def test_bad_embeddings_and_decisions_are_told_once_and_good_inputs_are_answered(siege, good):
    embedding, decision, _ = good
    for payload, reason in wrong_embeddings(embedding):
        siege.fire(topic_to("cam", Kind.EXIT, "b0"), "cam", payload, reason)
        siege.ask()
    for sender in (topics.ALL, "B0", "b0.", ""):
        siege.fire(topic_to("cam", Kind.EXIT, sender), "cam", encode(embedding), "sender")
        siege.fire(topic_to("b0", Kind.DECISION, sender), "b0", encode(decision), "sender")
    for payload, reason in wrong_decisions(decision):
        siege.fire(topic_to("b0", Kind.DECISION, "cam"), "b0", payload, reason)
        siege.ask()
    # A deeper exit of a request of which its first one was never heard.
    deeper = changed(embedding, origin="nobody", fuser="hub", stage=2)
    siege.fire(topic_to("hub", Kind.EXIT, "b0"), "hub", encode(deeper), "request")
    siege.check()


def test_inputs_that_no_branch_can_take_are_told_by_a_board_of_each_branch(siege, good):
    topic, stage = topics.stage(SITE, PIPELINE, 0, topics.ALL, "cam"), good[2]
    strangers = RouteStop(stage=0, boards=("x", "y"))
    cases = [
        (encode(changed(stage, fuser=None, origin="cam")), "fuser"),
        (encode(changed(stage, stage=1)), "stage"),
        (encode(changed(stage, revision="0" * 12)), "revision"),
        (encode(changed(stage, route=())), "route"),
        (encode(changed(stage, route=(strangers,))), "route"),
        (repacked(encode(stage), fuser="a/b"), "field"),
    ]
    # What is published once for all is for those that its route names; the others say nothing.
    siege.site.watch.publish(topic, encode(changed(stage, route=(dataclasses.replace(strangers, together=True),))))
    for payload, reason in cases:
        siege.fire(topic, "b0", payload, reason)
        siege.expected["b1", topic, reason] += 1
        siege.ask()
    for payload, reason in cases:
        siege.fire(topics.stage(SITE, PIPELINE, 0, "b1", "cam"), "b1", payload, reason)
    siege.check()


def test_random_bytes_on_exit_and_decision_topics_cost_no_answer(siege, good):
    noise = np.random.default_rng(3)
    embedding, decision, _ = good
    watch, sent = siege.site.watch, Counter()
    aims = {
        "cam": (topic_to("cam", Kind.EXIT, "b0"), encode(embedding)),
        "b1": (topic_to("b1", Kind.DECISION, "cam"), encode(decision)),
    }
    for device, (topic, valid) in aims.items():
        for index in range(300):
            payload = noise.bytes(int(noise.integers(0, 200)))
            if index % 3:
                # A valid message with some bytes changed: unknown requests and revisions at best.
                at, spoilt = int(noise.integers(0, len(valid))), noise.bytes(int(noise.integers(1, 6)))
                payload = valid[:at] + spoilt + valid[at + len(spoilt) :]
            watch.publish(topic, payload)
            sent[device] += 1
            if index % 30 == 0:
                siege.ask()
        watch.until(
            lambda device=device: sum(letter.device == device for letter in watch.dead) >= sent[device],
            f"a dead letter of each of {sent[device]} on {topic}",
        )
    watch.until(lambda: len(watch.final()) == siege.asked, f"{siege.asked} answers")
    assert served(siege.site, siege.asked) == siege.offline.answers(siege.images[: siege.asked])
    watch.until_reported("cam", "b1")
    assert {device: watch.telemetry[device].dead_letters for device in aims} == sent


# ---------------------------------------------------------------- what a board says of itself


def test_boards_tell_what_they_serve_and_whether_they_fuse(site, tiny_wide):
    start_wide(site, tiny_wide)
    site.agent("hub", [], fuse=True)
    site.agent("cam", [], origin=origin())
    site.watch.until(lambda: {"b0", "b1", "hub", "cam"} <= site.watch.metas.keys(), "the descriptions")
    metas = site.watch.metas
    for branch in range(2):
        assert [(held.stage, held.branch) for held in metas[f"b{branch}"].stages] == [(k, branch) for k in range(3)]
    assert {device: metas[device].fusers for device in metas} == {
        "b0": (), "b1": (), "hub": (PIPELINE,), "cam": (PIPELINE,),
    }  # fmt: skip
    assert "stage 0 branch 1, stage 1 branch 1, stage 2 branch 1" in site.log("b1")
    assert "fuses" in site.log("hub")
