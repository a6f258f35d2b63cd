"""PUBLISH and PUBACK, held against what paho builds and parses, and against noise."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt import _packet
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from thoroughness import often

from distree.transport import packets

topics = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00+#"), min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("content_type", "expiry_s", "whole"),
    [(None, None, None), ("application/json", None, None), (None, 2.1, 3), ("x" * 200, 0.0, 1), ("a/b", 7e4, 70000)],
)
def test_properties_are_packed_as_paho_packs_them(content_type, expiry_s, whole):
    expected = Properties(PacketTypes.PUBLISH)
    if whole is not None:
        expected.MessageExpiryInterval = whole
    if content_type is not None:
        expected.ContentType = content_type
    assert packets.properties(content_type, expiry_s) == expected.pack()


@given(topics, st.binary(max_size=400), st.integers(1, 65535), st.booleans(), st.booleans(), st.booleans())
def test_what_is_built_is_what_paho_reads(topic, payload, mid, retain, dup, is_mqtt5):
    properties = packets.properties("a/b", 5.0) if is_mqtt5 else b""
    packet = packets.publish(topic, payload, mid=mid, retain=retain, dup=dup, properties=properties)
    start, end = packets.frame(packet, 0)
    assert end == len(packet)
    protocol = MQTTProtocolVersion.MQTTv5 if is_mqtt5 else MQTTProtocolVersion.MQTTv311
    read = _packet.decode_publish(packet[0], bytearray(packet[start:]), protocol)
    assert (read.topic.decode(), read.payload, read.mid) == (topic, payload, mid)
    assert (read.qos, read.retain, read.dup) == (1, retain, dup)
    parsed = packets.parse_publish(packet[0], packet[start:], is_mqtt5=is_mqtt5)
    assert parsed == packets.Published(topic=topic, payload=payload, retain=retain, mid=mid)


def test_at_qos_0_there_is_no_packet_id():
    packet = packets.publish("a", b"x", mid=None)
    assert packet == b"\x30\x04\x00\x01ax"
    assert packets.parse_publish(0x30, packet[2:], is_mqtt5=False).mid is None


@pytest.mark.parametrize("length", [0, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_frames_of_every_length_of_length(length):
    packet = b"\x30" + packets.varint(length) + bytes(length)
    assert packets.frame(packet, 0) == (len(packet) - length, len(packet))
    assert packets.frame(b"??" + packet + b"!", 2) == (2 + len(packet) - length, 2 + len(packet))
    assert packets.frame(packet[:-1], 0) is None


def test_a_length_that_never_ends_is_no_frame():
    assert packets.frame(b"\x30\xff\xff\xff\xff\xff\x01", 0) is None


def test_acknowledgements():
    assert packets.puback(0x1234) == struct.pack("!BBH", 0x40, 2, 0x1234)
    assert packets.parse_puback(b"\x12\x34") == (0x1234, 0)
    assert packets.parse_puback(b"\x12\x34\x87\x00") == (0x1234, 0x87)
    with pytest.raises(ValueError):
        packets.parse_puback(b"\x12")


@given(st.integers(0x30, 0x3F), st.binary(max_size=60), st.booleans())
@settings(max_examples=often(1000))
def test_noise_is_read_or_refused(header, body, is_mqtt5):
    try:
        packets.parse_publish(header, body, is_mqtt5=is_mqtt5)
    except ValueError:
        return


@given(st.binary(max_size=40), st.integers(0, 39))
def test_noise_has_a_frame_or_none(buffer, at):
    found = packets.frame(buffer, min(at, len(buffer)))
    assert found is None or found[1] <= len(buffer)
