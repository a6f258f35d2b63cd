"""From audits to thresholds: what is believed (`audit_intake`), the tuners, and which of their thresholds hold."""
