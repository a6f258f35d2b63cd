"""Attempts: what an origin writes into a request, once per attempt, and which then travels with it unchanged."""

from __future__ import annotations

import hashlib

from distree.messages.request import TOKEN_BYTES, RequestContext, Rule
from distree.node.routing import Route, Router
from distree.node.settings import NodeSettings, OriginSettings


class Attempts:
    """Makes the contexts of one origin's requests. `router` says which board is to fuse."""

    def __init__(self, settings: NodeSettings, own: OriginSettings, router: Router) -> None:
        self._settings = settings
        self._own = own
        self._router = router
        self._secret = settings.secret[: hashlib.blake2b.MAX_KEY_SIZE]
        self._run = f"{settings.device} {settings.boot}".encode()
        self._requests = self._tokens = 0

    def request_id(self) -> str:
        """Return an id that no other request has."""
        self._requests += 1
        return f"{self._settings.boot}-{self._requests:x}"

    def first(self, request: str, rule: Rule, budget_s: float, *, attempt: int = 1) -> RequestContext:
        """Return the context of an input that this run of the agent takes in; its route is chosen when it leaves."""
        return RequestContext(
            request=request,
            origin=self._settings.device,
            attempt=attempt,
            token=self._token(),
            revision=self._settings.revision,
            rule=rule,
            budget_s=budget_s,
            eager=self._own.eager,
        )

    def routed(self, context: RequestContext, route: Route) -> RequestContext:
        """Return a context with its route: the same attempt."""
        return self._with(context, context.attempt, context.token, route, self._fuser())

    def next(self, before: RequestContext, route: Route, *, fuses_here: bool) -> RequestContext:
        """Return the context of the attempt after one, which this board fuses itself if it is to."""
        fuser = self._settings.device if fuses_here and self._settings.is_wide else self._fuser()
        return self._with(before, before.attempt + 1, self._token(), route, fuser)

    def _with(
        self, context: RequestContext, attempt: int, token: bytes, route: Route, fuser: str | None
    ) -> RequestContext:
        return RequestContext(
            request=context.request,
            origin=context.origin,
            attempt=attempt,
            token=token,
            revision=context.revision,
            rule=context.rule,
            budget_s=context.budget_s,
            route=route,
            fuser=fuser,
            eager=context.eager,
            audit=context.audit,
        )

    def background(self, rule: Rule, budget_s: float, route: Route = (), fuser: str | None = None) -> RequestContext:
        """Return the context of an audit or a probe, for which nobody waits: gated, whatever the mode."""
        return RequestContext(
            request=self.request_id(),
            origin=self._settings.device,
            attempt=1,
            token=self._token(),
            revision=self._settings.revision,
            rule=rule,
            budget_s=budget_s,
            route=route,
            fuser=fuser,
            audit=True,
        )

    def _token(self) -> bytes:
        """Return what nobody can guess who has not seen it, and what no two attempts share."""
        self._tokens += 1
        said = self._tokens.to_bytes(8, "big") + self._run
        return hashlib.blake2b(said, digest_size=TOKEN_BYTES, key=self._secret, salt=b"token").digest()

    def _fuser(self) -> str | None:
        return self._router.fuser() if self._settings.is_wide else None
