"""Mosquitto's access file, `acl_file`."""

from __future__ import annotations

from distree.roles import Principal, SiteAccess, rules

_WORDS = {(True, False): "read", (False, True): "write", (True, True): "readwrite"}


def access_file(access: SiteAccess) -> str:
    """Render the file for a whole site. Mosquitto reads it again on SIGHUP."""
    return "\n".join(section(access, who) for who in access.principals)


def section(access: SiteAccess, who: Principal) -> str:
    """Render the lines of one user.

    Mosquitto accepts every subscription and holds back what the user may not read, so filters that cover more than is
    allowed, and shared ones, deliver no more than these lines say.
    """
    lines = [f"# {', '.join(sorted(role.value for role in who.roles))}", f"user {who.name}"]
    lines += [f"topic {_WORDS[rule.read, rule.write]} {rule.filter}" for rule in rules(access, who)]
    return "\n".join(lines) + "\n"
