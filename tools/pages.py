"""Documentation pages as programs: what a page says is done in a folder, and what it shows is compared.

Comments before a fenced block, unseen by readers, say what it is:

    <!-- run -->               done with bash, stopping at the first failure; `in FOLDER` says where
    <!-- run again -->         as `run`, and over again until the page's output comes: it takes others their time
    <!-- output -->            what the block before printed, or, of a terminal, has printed by now or will;
                               `of NAME` is another terminal
    <!-- terminal NAME -->     done in a terminal of its own, which stays open; `in FOLDER` says where
    <!-- file PATH -->         written there; so is a block with title="PATH"
    <!-- install -->           done only where the product is to be installed first, see benchmarks/first_result.py
    <!-- not run: WHY -->      left out

And by themselves:

    <!-- kill NAME -->         the terminal's programs are killed, as by a power cut
    <!-- stop NAME -->         Ctrl-C in the terminal, which is awaited
    <!-- broker -->            a mosquitto runs from here on
    <!-- files of PAGE -->     the files that another page of the folder has are written first
    <!-- needs PROGRAM -->     the page can be run only where it is installed; `needs module NAME`: a module of Python
    <!-- given PROGRAM -->     what a program of the checkout writes stands for the files that a reader has

Of an output, a number with a decimal point stands for any such number, `…` for anything in its line, and a line that is
`…` alone for any lines; runs of blanks are as one. The page's 192.168.1.10 is this machine, its ports are others, and
/path/to/distree is the checkout. Started by root, a mosquitto.conf gets `user root`: another user could read nothing in
the folder.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PATIENCE_S = 60.0
_COMMAND_LIMIT_S, _INSTALL_LIMIT_S = 180.0, 600.0

_MARK = re.compile(r"\s*<!-- (?P<verb>files of|not run|[a-z]+)(?::)?(?: (?P<what>.*?))? -->\s*")
_FENCE = re.compile(r"(?P<indent> *)```(?P<info>.*)")
_TITLE = re.compile(r'title="(?P<path>[^"]+)"')
_VERBS = {
    "run", "output", "terminal", "file", "install", "not run", "kill", "stop", "broker", "files of", "needs", "given"
}  # fmt: skip


class PageError(Exception):
    """Something on a page is not so; says page and line."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing to do: a comment's verb and what follows it, the text of its block, and the line where it stands."""

    verb: str
    what: str
    text: str
    line: int
    language: str = ""


def steps(text: str) -> Iterator[Step]:
    """Yield what a page says to do, in order. Blocks without a comment or a title have the verb ""."""
    lines = text.split("\n")
    mark = ("", "", 0)
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if found := _MARK.fullmatch(line):
            verb, what = found["verb"], found["what"] or ""
            if verb not in _VERBS:
                continue
            if verb in ("kill", "stop", "broker", "files of", "needs", "given"):
                yield Step(verb, what, "", number)
            else:
                mark = (verb, what, number)
        elif fence := _FENCE.fullmatch(line):
            start, body = number, []
            while lines[number].strip() != "```":
                body.append(lines[number].removeprefix(fence["indent"]))
                number += 1
            number += 1
            verb, what, _ = mark
            if not verb and (title := _TITLE.search(fence["info"])):
                verb, what = "file", title["path"]
            yield Step(verb, what, "\n".join(body) + "\n", start, fence["info"].split(" ")[0])
            mark = ("", "", 0)
        elif line.strip():
            mark = ("", "", 0)


def is_missing(what: str, path: str | None) -> bool:
    """Say whether what a page needs is not there: a program on `path`, or after the word module, one of Python's."""
    kind, _, name = what.rpartition(" ")
    if kind == "module":
        return importlib.util.find_spec(name) is None
    return shutil.which(what, path=path) is None


def pattern(expected: str) -> re.Pattern[str]:
    """Return what an output block matches, as the docstring of this module says."""
    lines = []
    for line in expected.rstrip("\n").split("\n"):
        if line.strip() == "…":
            lines.append(r"(?:[^\n]*\n)*?")
            continue
        parts = re.split(r"(…|\d[\d,]*\.\d+)", " ".join(line.split()))
        known = {"…": r"[^\n]*"}
        made = (known.get(part, r"[\d,]*\.?\d+" if k % 2 else re.escape(part)) for k, part in enumerate(parts))
        lines.append("".join(made) + r"\n")
    return re.compile("^" + "".join(lines), re.MULTILINE)


def _plain(text: str) -> str:
    """Return text with its runs of blanks and its tabs as one blank: columns are as wide as figures are long."""
    return "".join(" ".join(line.split()) + "\n" for line in text.replace("\r", "\n").split("\n"))


class Terminal:
    """A program that goes on while the page does; what it prints is kept."""

    def __init__(self, command: str, folder: Path, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process.poll() is not None

    def end(self, number: signal.Signals) -> None:
        """Send a signal to all its processes and wait for the first; after PATIENCE_S, kill them."""
        for last in (number, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, last)
                self._process.wait(PATIENCE_S)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue
            return


class Runner:
    """Does what pages say in `folder`; a context manager that ends what runs in terminals.

    `ports` has what to use in place of the pages' ports, such as 40001 for 1883; `environment` is the programs'.
    """

    def __init__(self, folder: Path, ports: Mapping[int, int], environment: Mapping[str, str]) -> None:
        self.folder, self._ports = folder, dict(ports)
        self.environment = dict(environment)
        self.seconds: list[tuple[str, float]] = []
        """Of each command: how long it took until the page's next word."""
        self._terminals: dict[str, Terminal] = {}
        self._printed: str | Terminal = ""
        self._again: Step | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        for terminal in reversed(self._terminals.values()):
            terminal.end(signal.SIGKILL)

    def play(self, page: Path, *, install: bool = False, until: str | None = None) -> None:
        """Do what a page says; PageError tells where it went wrong. `until`: stop after the block with this text."""
        for step in steps(page.read_text(encoding="utf-8")):
            began = time.monotonic()
            try:
                self._do(page, step, install)
            except PageError as error:
                raise PageError(f"{page.name}:{step.line}: {error}") from None
            if step.verb in ("run", "terminal") or (install and step.verb == "install"):
                command = " && ".join(re.sub(r"\\\n\s*", "", step.text.strip()).split("\n"))
                self.seconds.append((command, time.monotonic() - began))
            elif step.verb == "output":  # what was waited for is the command's time
                command, taken = self.seconds.pop()
                self.seconds.append((command, taken + time.monotonic() - began))
            if until is not None and until in step.text:
                return

    def _do(self, page: Path, step: Step, install: bool) -> None:
        match step.verb:
            case "file":
                path = self.folder / step.what
                path.parent.mkdir(parents=True, exist_ok=True)
                as_root = "user root\n" if path.name == "mosquitto.conf" and os.geteuid() == 0 else ""
                path.write_text(self._local(step.text) + as_root, encoding="utf-8")
            case "files of":
                for other in steps((page.parent / step.what).read_text(encoding="utf-8")):
                    if other.verb == "file":
                        self._do(page, other, install)
            case "given":
                command = f"python3 /path/to/distree/{step.what}\n"
                self._run(dataclasses.replace(step, what="", text=command))
            case "run":
                self._again = step if step.what.startswith("again") else None
                self._printed = self._run(step)
            case "install" if install:
                self._printed = self._run(step)
            case "terminal":
                name, folder = _place(step.what)
                log = self.folder / f".{name}.log"
                terminal = Terminal(f"exec {self._local(step.text)}", self.folder / folder, self.environment, log)
                self._printed = self._terminals[name] = terminal
            case "output":
                told_by = step.what.removeprefix("of ")
                printed = self._terminals[told_by] if told_by else self._printed
                self._compare(self._local(step.text), printed)
            case "kill":
                self._terminals.pop(step.what).end(signal.SIGKILL)
            case "stop":
                self._terminals.pop(step.what).end(signal.SIGINT)

    def _run(self, step: Step) -> str:
        folder = self.folder / _place(f"run {step.what}".strip())[1]
        try:
            done = subprocess.run(
                ["bash", "-e", "-o", "pipefail", "-c", self._local(step.text)],
                cwd=folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_INSTALL_LIMIT_S if step.verb == "install" else _COMMAND_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise PageError(f"not done after {late.timeout:g} s:\n{step.text}{self._heard()}") from None
        if done.returncode:
            raise PageError(f"status {done.returncode} of\n{step.text}{done.stdout}{self._heard()}")
        return done.stdout

    def _compare(self, expected: str, printed: str | Terminal) -> None:
        """Look for what the page shows; a terminal, and what is run again, may take their time."""
        wanted = pattern(expected)
        until = time.monotonic() + PATIENCE_S
        while not wanted.search(_plain(_text(printed))):
            if time.monotonic() > until or not self._may_come(printed):
                raise PageError(f"the page shows\n{expected}and this was printed:\n{_text(printed)}{self._heard()}")
            time.sleep(0.05)
            if isinstance(printed, str) and self._again is not None:
                printed = self._run(self._again)

    def _may_come(self, printed: str | Terminal) -> bool:
        return self._again is not None if isinstance(printed, str) else not printed.ended

    def _heard(self) -> str:
        return "".join(f"\n--- terminal {name}:\n{terminal.text}" for name, terminal in self._terminals.items())

    def _local(self, text: str) -> str:
        text = re.sub(r"192\.168\.1\.10\b", "127.0.0.1", text)
        for port, other in self._ports.items():
            text = re.sub(rf"\b{port}\b", str(other), text)
        return text.replace("/path/to/distree", shlex.quote(str(ROOT)))


def _text(printed: str | Terminal) -> str:
    return printed if isinstance(printed, str) else printed.text


def _place(what: str) -> tuple[str, str]:
    """Split "NAME in FOLDER"."""
    name, _, folder = what.partition(" in ")
    return name.strip(), folder.strip() or "."
