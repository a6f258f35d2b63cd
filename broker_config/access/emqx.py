"""The access file of EMQX 5, acl.conf: Erlang terms, of which the first that matches decides."""

from __future__ import annotations

from collections.abc import Sequence

from distree.roles import SiteAccess, rules


def access_file(access: SiteAccess) -> str:
    """Render the file for a whole site. EMQX must also be told `authorization.no_match = deny`."""
    lines = ["%% Who may do what on the site " + access.site + "; all else is denied."]
    for who in access.principals:
        allowed = rules(access, who)
        lines += ["", f"%% {who.name}: {', '.join(sorted(role.value for role in who.roles))}"]
        lines += _term(who.name, "publish", [rule.filter for rule in allowed if rule.write])
        lines += _term(who.name, "subscribe", [rule.filter for rule in allowed if rule.read])
    return "\n".join((*lines, "", "{deny, all}.")) + "\n"


def _term(name: str, action: str, filters: Sequence[str]) -> list[str]:
    if not filters:
        return []
    quoted = ",\n  ".join(f'"{each}"' for each in filters)
    return [f'{{allow, {{username, "{name}"}}, {action}, [\n  {quoted}\n]}}.']
