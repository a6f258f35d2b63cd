"""Origin in a program, on a real broker: many threads, many tasks, a broker that dies, and every way to end."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from input_bundles import motion_bundle, motions, sound_bundle, sounds, wav

from broker_config.managed import ManagedBroker, find_mosquitto, free_port
from device_agent import Origin
from device_agent.config import AgentConfig, load_agent_config
from device_agent.spool import Spool
from distree.broker_settings import BrokerSettings
from distree.bundle.loading import find_bundle, load_bundle
from distree.bundle.runtimes import make_runtime
from distree.errors import BrokerError, BundleError, ClosedError, ConfigError, InputError, OverloadError

pytestmark = pytest.mark.any_broker

PATIENCE_S = 60


@pytest.fixture(scope="module")
def broker():
    with ManagedBroker() as running:
        yield running


@pytest.fixture(scope="module")
def images():
    with np.load(find_bundle("fashion").parents[1] / "samples" / "fashion.npz") as arrays:
        return arrays["input"][:100]


@pytest.fixture(scope="module")
def expected(images):
    """What the segments of the bundle say, run by hand: class and exit of each image."""
    from distree.bundle.preprocessing import Preprocessor

    bundle = load_bundle("fashion")
    runtime, preprocessor, answers = make_runtime(bundle, [0, 1, 2]), Preprocessor(bundle.manifest), []
    for image in images:
        features = preprocessor.tensor(image)
        for k in range(3):
            output = runtime.run(k, features)
            logits = np.asarray(output.logits)
            p = np.exp(logits - logits.max())
            if k == 2 or (p / p.sum()).max() >= bundle.thresholds[k]:
                answers.append((int(logits.argmax()), k))
                break
            features = output.features
    return answers


@pytest.fixture
def origin_on(tmp_path):
    """Makes origins that serve all stages, or those given."""

    def make(port, **changes):
        options = {"site": "api", "device": "cam", "pipeline": "fashion", "stages": [0, 1, 2], "deadline_s": 30.0}
        return Origin("fashion", broker=f"127.0.0.1:{port}", state_dir=tmp_path, **{**options, **changes})

    return make


def test_many_threads_each_get_their_own_answers(origin_on, broker, images, expected):
    order = np.random.default_rng(3).permutation(np.tile(np.arange(len(images)), 4))
    with origin_on(broker.port, max_pending=8) as origin, ThreadPoolExecutor(8) as threads:
        results = list(
            threads.map(lambda k: origin.submit(images[k], str(k), timeout_s=PATIENCE_S).result(PATIENCE_S), order)
        )
        assert origin.pending == 0
    assert [(result.class_id, result.exit) for result in results] == [expected[k] for k in order]
    assert [result.input for result in results] == [str(k) for k in order]
    assert len({result.request for result in results}) == len(order)
    assert {result.reason for result in results} <= {"confident", "last"}


def test_the_array_may_be_used_again_at_once(origin_on, broker, images, expected):
    frame, futures = np.empty_like(images[0]), []
    with origin_on(broker.port) as origin:
        for image in images[:40]:
            frame[:] = image
            futures.append(origin.submit(frame))
        frame[:] = 0
        assert [future.result(PATIENCE_S).class_id for future in futures] == [answer[0] for answer in expected[:40]]


def test_many_tasks_wait_in_line_for_a_small_window(origin_on, broker, images, expected):
    async def program():
        async with origin_on(broker.port, max_pending=3) as origin:
            return await asyncio.gather(
                *(origin.submit_async(image, str(k), timeout_s=PATIENCE_S) for k, image in enumerate(images))
            )

    results = asyncio.run(program())
    assert [(result.class_id, result.exit) for result in results] == expected
    assert [result.input for result in results] == [str(k) for k in range(len(images))]


def test_a_recording_is_read_as_its_windows(broker, tmp_path):
    bundle = sound_bundle(tmp_path / "sound")
    windows = sounds(2)
    with Origin(
        bundle.path,
        site="api",
        device="mic",
        pipeline="sound",
        stages=[0, 1, 2],
        broker=f"127.0.0.1:{broker.port}",
        deadline_s=30.0,
    ) as origin:
        found = origin.decode_windows(wav(windows.ravel()))
        assert len(found) == 3
        assert (found[0] == windows[0]).all()
        assert (found[2] == windows[1]).all()
        assert (origin.decode(wav(windows[0])) == windows[0]).all()
        with pytest.raises(InputError, match="input: the recording has 3 windows, but only one is expected"):
            origin.decode(wav(windows.ravel()))
        assert [origin.submit(window).result(PATIENCE_S).final for window in found] == [True] * 3


def test_values_that_are_not_finite_are_told(broker, tmp_path):
    bundle = motion_bundle(tmp_path / "motion")
    window = motions(1)[0]
    window[7, 2] = np.nan
    with (
        Origin(
            bundle.path,
            site="api",
            device="imu",
            pipeline="motion",
            stages=[0, 1, 2],
            broker=f"127.0.0.1:{broker.port}",
        ) as origin,
        pytest.raises(InputError, match=r"input: expected finite numbers, received nan at \[7, 2\]"),
    ):
        origin.submit(window)


def elsewhere(origin_on, port, **changes):
    """An origin whose stages are on no board: its inputs stay under way until their deadline."""
    return origin_on(port, stages=[], **changes)


def test_without_room_submit_says_so_at_once_or_after_its_time(origin_on, broker, images):
    with elsewhere(origin_on, broker.port, max_pending=2, deadline_s=2.0) as origin:
        futures = [origin.submit(image) for image in images[:2]]
        with pytest.raises(OverloadError, match="no room for another input"):
            origin.submit(images[0], timeout_s=0)
        began_at = time.monotonic()
        with pytest.raises(OverloadError):
            origin.submit(images[0], timeout_s=0.2)
        assert time.monotonic() - began_at >= 0.2
        # Who waits gets in as soon as a deadline has made room.
        futures.append(origin.submit(images[2], timeout_s=PATIENCE_S))
        assert {future.result(PATIENCE_S).reason for future in futures} <= {"deadline", "fallback"}


def test_a_cancelled_task_leaves_the_line_to_the_next_and_nothing_behind(origin_on, broker, images):
    async def program():
        async with elsewhere(origin_on, broker.port, max_pending=1, deadline_s=1.0) as origin:
            first = asyncio.create_task(origin.submit_async(images[0]))
            await asyncio.sleep(0)
            waiting = [asyncio.create_task(origin.submit_async(images[0], timeout_s=PATIENCE_S)) for _ in range(3)]
            await asyncio.sleep(0.05)
            assert [task.done() for task in waiting] == [False] * 3
            for task in (first, waiting[0], waiting[1]):
                task.cancel()
            ended = await asyncio.gather(first, *waiting, return_exceptions=True)
            assert [type(end) for end in ended[:3]] == [asyncio.CancelledError] * 3
            assert ended[3].reason in ("deadline", "fallback")
            assert origin.pending == 0
            assert not origin._intake.pipeline.room._waiters
            with pytest.raises(OverloadError):
                await asyncio.gather(*(origin.submit_async(images[0], timeout_s=0) for _ in range(2)))

    asyncio.run(program())


def test_a_cancelled_future_harms_nobody(origin_on, broker, images):
    with elsewhere(origin_on, broker.port, deadline_s=0.5) as origin:
        assert origin.submit(images[0]).cancel()
        assert origin.submit(images[1]).result(PATIENCE_S).final
        assert origin.pending == 0


def test_a_callback_may_submit_and_never_waits(origin_on, broker, images):
    ended, outcome = threading.Event(), []
    with elsewhere(origin_on, broker.port, max_pending=2, deadline_s=1.0) as origin:

        def again(future):
            if outcome:
                return
            try:
                # One was answered, so there is room for one; then there is none, and this thread is to make some.
                outcome.append(origin.submit(images[0], timeout_s=0))
                for _ in range(3):
                    origin.submit(images[0], timeout_s=PATIENCE_S)
            except OverloadError as error:
                outcome.append(error)
            ended.set()

        began_at = time.monotonic()
        for image in images[:2]:
            origin.submit(image).add_done_callback(again)
        assert ended.wait(PATIENCE_S)
        assert time.monotonic() - began_at < PATIENCE_S / 2
        assert outcome[0].result(PATIENCE_S).final
        assert isinstance(outcome[1], OverloadError)


@pytest.mark.parametrize(
    ("wrong", "received"),
    [
        (np.zeros((28, 28), np.uint8), "uint8 (28, 28)"),
        (np.zeros((28, 28, 1), np.float32), "float32 (28, 28, 1)"),
        ([[0]], "list"),
    ],
)
def test_a_wrong_input_is_told_in_one_line_and_not_sent(origin_on, broker, wrong, received):
    with origin_on(broker.port) as origin:
        assert (origin.shape, origin.dtype) == ((28, 28, 1), np.uint8)
        with pytest.raises(InputError) as told:
            origin.submit(wrong)
        with pytest.raises(InputError):
            asyncio.run(origin.submit_async(wrong))
        assert origin.pending == 0
    assert told.value.what == f"input: bundle fashion takes an array uint8 (28, 28, 1), received {received}"
    assert told.value.remedy == "convert it, or use decode for encoded images"


def test_bytes_and_images_become_inputs(origin_on, broker, images):
    image = pytest.importorskip("PIL.Image", reason="images need Pillow: pip install 'distree[images]'")
    import io

    encoded = io.BytesIO()
    image.fromarray(images[0][..., 0]).save(encoded, "PNG")
    with origin_on(broker.port) as origin:
        assert (origin.decode(encoded.getvalue()) == images[0]).all()
        assert (origin.decode(images[0].tobytes()) == images[0]).all()
        with pytest.raises(InputError, match="expected an image file, 784 raw bytes"):
            origin.decode(b"neither")


def test_closing_gives_every_future_an_end(origin_on, broker, images, tmp_path):
    config = elsewhere(origin_on, broker.port)._config
    from dataclasses import replace

    origin = Origin.from_config(replace(config, shutdown_timeout_s=0.3))
    with origin:
        futures = [origin.submit(image) for image in images[:5]]
        blocked = ThreadPoolExecutor(1)
        while origin._intake.pipeline.node.room() > 0:
            futures.append(origin.submit(images[0]))
        late = blocked.submit(origin.submit, images[0], timeout_s=PATIENCE_S)
    for future in futures:
        with pytest.raises(ClosedError, match="no answer: this Origin was closed"):
            future.result(0)
    with pytest.raises(ClosedError):
        late.result(PATIENCE_S)
    blocked.shutdown()
    with pytest.raises(ClosedError, match="this Origin is closed"):
        origin.submit(images[0])
    with pytest.raises(ClosedError):
        asyncio.run(origin.submit_async(images[0]))
    with pytest.raises(ClosedError, match="been used before"):
        origin.__enter__()
    origin.close()


def test_an_origin_that_was_never_entered_says_so(origin_on, images):
    with pytest.raises(ClosedError, match="with block"):
        origin_on(1).submit(images[0])


def test_a_broker_that_dies_costs_no_input(origin_on, images, expected):
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")
    with ManagedBroker(engine="mosquitto") as broker, origin_on(broker.port, max_pending=200) as origin:
        futures = [origin.submit(image) for image in images[:30]]
        broker.stop()
        futures += [origin.submit(image) for image in images[30:60]]
        assert [future.result(PATIENCE_S).class_id for future in futures] == [answer[0] for answer in expected[:60]]
        broker.start()
        futures = [origin.submit(image) for image in images[60:]]
        assert [future.result(PATIENCE_S).class_id for future in futures] == [answer[0] for answer in expected[60:]]


def test_without_its_broker_it_closes_in_time_and_its_spool_keeps_the_results(origin_on, images, tmp_path):
    from dataclasses import replace

    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")
    with ManagedBroker(engine="mosquitto") as broker:
        config = replace(origin_on(broker.port, spool=True)._config, shutdown_timeout_s=0.5)
        with Origin.from_config(config) as origin:
            assert origin.submit(images[0]).result(PATIENCE_S).final
            # The broker has it: it need not be kept.
            ends_at = time.monotonic() + PATIENCE_S
            while origin._intake.pipeline.node.pending:
                assert time.monotonic() < ends_at
                time.sleep(0.01)
            broker.stop()
            futures = [origin.submit(image) for image in images[:4]]
            assert all(future.result(PATIENCE_S).final for future in futures)
            began_at = time.monotonic()
        assert time.monotonic() - began_at < 15
        assert len(Spool(tmp_path / "fashion.spool").recover().unpublished) == 4


def test_it_starts_without_a_broker_if_told_to(origin_on, images, expected):
    port = free_port()
    with pytest.raises(BrokerError, match=f"nothing listens on 127.0.0.1:{port}"):
        origin_on(port, connect_timeout_s=0.5).__enter__()
    with ManagedBroker(port=port) as broker:
        broker.stop()
        from dataclasses import replace

        config = replace(origin_on(port)._config, shutdown_timeout_s=0.2)
        with Origin.from_config(config, connect_timeout_s=0) as origin:
            assert origin.submit(images[0]).result(PATIENCE_S).class_id == expected[0][0]


def test_what_the_agent_dies_of_reaches_whoever_waits(origin_on, broker, images, monkeypatch):
    with elsewhere(origin_on, broker.port) as origin:
        future = origin.submit(images[0])
        origin._agent.on_hang()
        with pytest.raises(ClosedError, match="the agent failed"):
            future.result(PATIENCE_S)
        with pytest.raises(ClosedError, match="the agent failed"):
            origin.submit(images[0])


def test_mistakes_of_configuration(tmp_path, origin_on, broker):
    with pytest.raises(ConfigError, match="expected mqtt://HOST:PORT or mqtts://HOST:PORT, received 'http://hub'"):
        origin_on(1).__class__("fashion", site="a", device="b", pipeline="c", broker="http://hub")
    with pytest.raises(ConfigError, match="device: 'Cam' is not an id"):
        origin_on(1, device="Cam")
    with pytest.raises(BundleError):
        Origin("nothing", site="a", device="b", pipeline="c").__enter__()
    (tmp_path / "agent.yaml").write_text("site: a\ndevice: b\npipelines: [{name: p, bundle: fashion, stages: [0]}]\n")
    with pytest.raises(ConfigError, match=r"0 have an origin with source {kind: python}"):
        Origin.from_yaml(tmp_path / "agent.yaml")
    config: AgentConfig = origin_on(1)._config
    secret = BrokerSettings(port=broker.port, username="x", password_file=tmp_path / "none")
    from dataclasses import replace

    with pytest.raises(ConfigError, match="password_file"):
        Origin.from_config(replace(config, broker=secret)).__enter__()


def test_from_yaml(tmp_path, broker, images, expected):
    (tmp_path / "agent.yaml").write_text(
        f"site: api\ndevice: yaml\nbroker: {{port: {broker.port}}}\npipelines:\n  - name: fashion\n    bundle: fashion\n"
        "    stages: [0, 1, 2]\n    origin: {deadline_ms: 30000, source: {kind: python}}\n"
    )
    assert load_agent_config(tmp_path / "agent.yaml").device == "yaml"
    with Origin.from_yaml(tmp_path / "agent.yaml") as origin:
        assert origin.submit(images[0]).result(PATIENCE_S).class_id == expected[0][0]


def test_no_thread_and_no_future_stays_behind(origin_on, broker, images):
    before = set(threading.enumerate())
    with origin_on(broker.port) as origin:
        future = origin.submit(images[0])
        future.result(PATIENCE_S)
    assert set(threading.enumerate()) <= before
    kept = weakref.ref(future)
    del future
    gc.collect()
    assert kept() is None


def test_a_forked_child_is_told_and_the_parent_goes_on(origin_on, broker, images, expected):
    with origin_on(broker.port) as origin:
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                origin.submit(images[0])
            except ClosedError as error:
                os.write(theirs, str(error).encode())
            finally:
                origin.close()
                os._exit(0)
        os.close(theirs)
        with os.fdopen(ours) as pipe:
            assert "forked" in pipe.read()
        os.waitpid(child, 0)
        result = origin.submit(images[1]).result(PATIENCE_S)
        assert (result.class_id, result.exit) == expected[1]
