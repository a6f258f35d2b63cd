"""Attempts: what an origin writes into a request, once per attempt, and which then travels with it unchanged."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from distree.messages.request import RequestContext, Rule
from distree.node.circuits import Circuit
from distree.node.settings import NodeSettings, OriginSettings

TOKEN_BYTES = 8


class Attempts:
    """Makes the contexts of one origin's requests. `fuser_circuit` tells whether the board that fuses answers."""

    def __init__(self, settings: NodeSettings, own: OriginSettings, fuser_circuit: Circuit) -> None:
        self._settings = settings
        self._own = own
        self._fuser_circuit = fuser_circuit
        self._secret = settings.secret[: hashlib.blake2b.MAX_KEY_SIZE]
        self._run = f"{settings.device} {settings.boot}".encode()
        self._requests = self._tokens = 0

    def request_id(self) -> str:
        """Return an id that no other request has."""
        self._requests += 1
        return f"{self._settings.boot}-{self._requests:x}"

    def first(self, request: str, rule: Rule, budget_s: float, *, attempt: int = 1) -> RequestContext:
        """Return the context of an input's first attempt by this run of the agent."""
        return RequestContext(
            request=request,
            origin=self._settings.device,
            attempt=attempt,
            token=self._token(),
            revision=self._settings.revision,
            rule=rule,
            budget_s=budget_s,
            fuser=self._fuser_now(),
            eager=self._own.eager,
        )

    def next(self, before: RequestContext) -> RequestContext:
        """Return the context of the repetition, which this board fuses itself."""
        fuser = None if before.fuser is None else self._settings.device
        return replace(before, attempt=before.attempt + 1, token=self._token(), fuser=fuser)

    def unasked(self, rule: Rule, budget_s: float, *, fuser: str | None = None) -> RequestContext:
        """Return the context of an audit or a probe, for which nobody waits: gated, whatever the mode."""
        return RequestContext(
            request=self.request_id(),
            origin=self._settings.device,
            attempt=1,
            token=self._token(),
            revision=self._settings.revision,
            rule=rule,
            budget_s=budget_s,
            fuser=fuser or self._fuser_now(),
            audit=True,
        )

    def _token(self) -> bytes:
        """Return what nobody can guess who has not seen it, and what no two attempts share."""
        self._tokens += 1
        said = self._tokens.to_bytes(8, "big") + self._run
        return hashlib.blake2b(said, digest_size=TOKEN_BYTES, key=self._secret, salt=b"token").digest()

    def _fuser_now(self) -> str | None:
        """Return the board that is to fuse: this one itself while the one for that does not answer."""
        if not self._settings.is_wide:
            return None
        other = self._own.fuser
        return self._settings.device if other is None or self._fuser_circuit.is_open else other
