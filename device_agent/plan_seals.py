"""Which plans a board believes that knows its orchestrator's keys: signed with one of them, and no older than the last.

The number of the last plan that was obeyed is kept on disk, one for each key, so that a plan that was recorded earlier
is still known as old after a restart. Keys are replaced by adding the new one, and removing the old one later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from device_agent.disk import remedy_of
from distree.errors import Problem, RemoteProtocolError
from distree.messages.limits import MAX_SEQUENCE
from distree.regular_files import read_regular
from distree.signing import PublicKeys, Seal

MAX_FILE_BYTES = 1 << 16


class PlanSeals:
    """Checks the plans of one pipeline. `path` is where numbers are kept, None if nothing is to be kept.

    `tell` is told what is wrong with that file.
    """

    def __init__(self, keys: Sequence[str], path: Path | None, tell: Callable[[Problem], None]) -> None:
        self._keys = PublicKeys(keys)
        self._path = path
        self._tell = tell
        self._last = self._read()

    def check(self, topic: str, payload: bytes) -> Seal:
        """Return the seal of a plan; RemoteProtocolError (`signature` or `replay`) if it is not to be obeyed."""
        if not payload:
            raise RemoteProtocolError(
                "signature",
                "the plan was taken off its topic, which nobody can sign",
                "have the orchestrator publish its plan again: distree orchestrator reset-plan",
            )
        seal = self._keys.check(topic, payload)
        number, signature = self._last.get(seal.key, (-1, ""))
        if seal.sequence < number or (seal.sequence == number and seal.signature.hex() != signature):
            raise RemoteProtocolError(
                "replay",
                f"number {seal.sequence} of its key, but number {number} was obeyed already: somebody publishes an "
                "earlier plan again, or the orchestrator has lost its store",
                "make a new key for the orchestrator and put it into plan_keys"
                if seal.sequence == number
                else "restrict who may publish there in the broker's ACL; if the store was lost, make a new key",
            )
        return seal

    def obeyed(self, seal: Seal) -> None:
        """Note that a plan is in force; from now on no older one is."""
        now = seal.sequence, seal.signature.hex()
        if self._last.get(seal.key) == now:
            return
        self._last[seal.key] = now
        try:
            self._write()
        except OSError as error:
            what = f"{self._path}: {error.strerror}: after a restart, older plans would be obeyed again"
            self._tell(Problem(what, remedy_of(error, "correct state_dir")))

    def _read(self) -> dict[str, tuple[int, str]]:
        if self._path is None:
            return {}
        try:
            text = read_regular(self._path, MAX_FILE_BYTES)
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._tell(
                Problem(
                    f"{self._path}: {error.strerror}: older plans are not known as such", remedy_of(error, "remove it")
                )
            )
            return {}
        try:
            found = {str(key): (int(number), str(signature)) for key, (number, signature) in json.loads(text).items()}
            if not all(0 <= number <= MAX_SEQUENCE for number, _ in found.values()):
                raise ValueError("a number is out of range")
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            self._tell(
                Problem(
                    f"{self._path}: damaged: a plan from before may be obeyed once more",
                    "nothing to do: it is written anew with the next plan",
                )
            )
            return {}
        return found

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(self._path.name + ".new")
        with fresh.open("w", encoding="ascii") as out:
            json.dump(self._last, out)
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(self._path)
