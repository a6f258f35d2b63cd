"""DistrEE: distributed early exit of neural-network inference over MQTT."""

__version__ = "0.1.0"
