"""Secrets that systemd hands to a service (LoadCredential=): files in a folder that only this service can read.

They are copied when the service starts, so a certificate is handed over together with its key: a renewed one would not
fit the old key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from distree.broker_settings import BrokerSettings

PASSWORD, CERTIFICATE, KEY = "broker-password", "broker-certificate", "broker-key"


def with_service_credentials(broker: BrokerSettings, environ: Mapping[str, str] = os.environ) -> BrokerSettings:
    """Return the settings with the files that were handed over instead of those that the service cannot read."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder is None:
        return broker
    if (password := Path(folder, PASSWORD)).is_file():
        broker = replace(broker, password_file=password)
    certificate, key = Path(folder, CERTIFICATE), Path(folder, KEY)
    if broker.tls is not None and certificate.is_file() and key.is_file():
        broker = replace(broker, tls=replace(broker.tls, cert_file=certificate, key_file=key))
    return broker
