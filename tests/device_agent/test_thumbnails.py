"""Pictures of inputs for dashboards: right to the pixel, small, few, and none where nobody asked for them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_transport import MemoryBroker

from device_agent import preflight
from device_agent.agent import Agent
from device_agent.config import AgentConfig, AgentPipelineConfig, OriginConfig, ThumbnailConfig
from device_agent.preflight import load_bundles
from device_agent.sources.mqtt import MqttSourceConfig
from device_agent.thumbnails import Thumbnails, can_show, png, shrink, waveform
from distree import topics
from distree.bundle.manifest import InputSpec
from distree.errors import ConfigError
from distree.messages.codec import decode
from distree.messages.events import Thumbnail
from distree.messages.limits import MAX_THUMBNAIL_BYTES
from distree.topics import Kind

sizes = st.integers(1, 300)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.sampled_from([1, 3]), st.sampled_from([8, 48, 128]), st.integers(0, 2**32 - 1))
def test_a_picture_is_what_was_given_made_small(height, width, channels, side, seed):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'distree[images]'")
    image = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    small = shrink(image, side)
    assert small.dtype == np.uint8
    assert max(small.shape[:2]) <= side
    assert small.shape[2] == channels
    if max(height, width) <= side:
        assert np.array_equal(small, image)
    else:
        # Means of blocks: near the mean of the whole for noise of this many pixels, and never outside its range.
        assert image.min() <= small.min() <= small.max() <= image.max()
    encoded = png(small)
    assert len(encoded) < MAX_THUMBNAIL_BYTES
    with image_module.open(io.BytesIO(encoded)) as decoded:
        assert decoded.format == "PNG"
        assert np.array_equal(np.asarray(decoded).reshape(small.shape), small)


def test_blocks_are_averaged():
    image = np.zeros((16, 32, 1), np.uint8)
    image[:, 16:] = 200
    image[0, 0] = 160
    small = shrink(image, 8)
    assert small.shape == (4, 8, 1)
    assert small[:, 4:].min() == 200
    assert small[0, 0, 0] == 10  # 160 over 4 x 4 pixels


@pytest.mark.parametrize(
    ("dtype", "shape", "told"),
    [
        ("uint8", (28, 28, 3), True), ("int16", (16000,), True), ("float32", (128, 3), True), ("int8", (49, 10, 1), False),
        ("uint8", (4,), False), ("float32", (4, 3, 2), False),
    ],
)  # fmt: skip
def test_images_and_windows_of_recordings_can_be_shown(dtype, shape, told):
    assert can_show(InputSpec(dtype=dtype, shape=shape)) is told


def test_a_waveform_goes_from_the_least_to_the_largest_value():
    ramp = waveform(np.arange(1000, dtype=np.int16), 48)
    assert (ramp.dtype, ramp.shape) == (np.uint8, (24, 48, 1))
    assert ramp[0, -1, 0] == ramp[-1, 0, 0] == 255
    assert ramp[0, 0, 0] == ramp[-1, -1, 0] == 0
    assert (ramp.max(axis=0) == 255).all()


@pytest.mark.parametrize(("channels", "planes"), [(1, 1), (2, 3), (3, 3), (6, 1)])
@pytest.mark.parametrize("count", [1, 7, 48, 500])
def test_waveforms_of_any_window_are_small_pictures(channels, planes, count):
    window = np.random.default_rng(1).normal(size=(count, channels)).astype(np.float32)
    picture = waveform(window, 48)
    assert picture.shape == (24, min(48, count), planes)
    assert len(png(picture)) < MAX_THUMBNAIL_BYTES
    assert waveform(np.zeros((count, channels), np.float32), 48).max() == 255


def test_channels_have_their_colours():
    window = np.zeros((100, 3), np.float32)
    window[:, 1], window[:, 2] = 1.0, 2.0
    picture = waveform(window, 48)
    assert picture[0].tolist() == [[0, 0, 255]] * 48
    assert picture[-1].tolist() == [[255, 0, 0]] * 48


def test_no_more_pictures_than_the_rate_allows():
    thumbnails = Thumbnails(ThumbnailConfig(max_rate_hz=4))
    image = np.zeros((4, 4, 1), np.uint8)
    taken = [now / 100 for now in range(100, 300) if thumbnails.make(now / 100, image) is not None]
    assert taken == pytest.approx([1.0 + 0.25 * k for k in range(8)], abs=0.02)


@pytest.mark.parametrize(
    "changes", [{"max_side_px": 7}, {"max_side_px": 129}, {"max_rate_hz": 0}, {"max_rate_hz": float("inf")}]
)
def test_sizes_and_rates_out_of_bounds_are_refused(changes):
    with pytest.raises(ConfigError):
        ThumbnailConfig(**changes)


class Listener:
    def __init__(self):
        self.messages = []

    def connected(self):
        pass

    def disconnected(self, why):
        pass

    def published(self, token):
        pass

    def given_up(self, token):
        pass

    def no_subscribers(self, topic, payload):
        pass

    def received(self, message):
        self.messages.append(message)


def published(tmp_path, thumbnails, count=3):
    """What an origin with or without thumbnails publishes on its thumbnail topic for `count` inputs."""
    origin = OriginConfig(source=MqttSourceConfig(kind="mqtt"), thumbnails=thumbnails)
    pipeline = AgentPipelineConfig(name="p", bundle="fashion", origin=origin)
    config = AgentConfig(site="lab", device="cam", pipelines=(pipeline,), state_dir=tmp_path)
    broker, listener = MemoryBroker(), Listener()
    watch, transport = broker.transport("watch"), broker.transport("cam")
    watch.open(listener, [(topics.of_origin("lab", "p", Kind.THUMBNAIL, "+"), 0)])
    watch.connect_now(1.0)
    agent = Agent(config, transport=transport)
    transport.open(agent, [])
    transport.connect_now(1.0)
    for index in range(count):
        agent.intakes[0].submit(str(index), np.full((28, 28, 1), index, np.uint8), f"r{index}")
    watch.poll(0.1)
    return listener.messages


def test_an_origin_publishes_pictures_if_asked(tmp_path):
    messages = published(tmp_path, ThumbnailConfig(max_side_px=16, max_rate_hz=1e9))
    decoded = [decode(Thumbnail, message.payload) for message in messages]
    assert [thumbnail.request for thumbnail in decoded] == ["r0", "r1", "r2"]
    assert decoded[1].png == png(np.ones((14, 14, 1), np.uint8))


def test_an_origin_publishes_none_if_not_asked(tmp_path):
    assert published(tmp_path, None) == []


def test_inputs_without_a_picture_are_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "can_show", lambda spec: False)
    origin = OriginConfig(source=MqttSourceConfig(kind="mqtt"), thumbnails=ThumbnailConfig())
    pipeline = AgentPipelineConfig(name="p", bundle="fashion", origin=origin)
    config = AgentConfig(site="lab", device="cam", pipelines=(pipeline,), state_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"pipelines\.p\.origin\.thumbnails: inputs of bundle fashion are uint8"):
        load_bundles(config)
