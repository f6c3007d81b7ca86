"""What all surfaces share: inputs chosen by the code that they reach (atheris), and what counts as a bug.

A bug is an exception that is not the package's own, an input that takes SLOW seconds of the processor or GREEDY bytes,
and any process, connection, pickle or file outside of the working folder that an input opens.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import atheris
import torch  # noqa: F401 - before instrumentation: it is large, and not ours

SLOW = 5.0
GREEDY = 2**29
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "pickle.find_class",
    "socket.connect",
    "subprocess.Popen",
)
"""Audit events: what a file or a name must never bring about."""
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 7, 2**31, 2**63, 10**400, 0.5, 1e308, math.nan, -math.inf),
    *("", "\0", "../../x", "[/b]", "nan", "9" * 5000, "²", "é", [], [[]], {}, {"": 0}, [None] * 3),
)
WORK = Path(tempfile.mkdtemp(prefix="icam-fuzz-"))
"""Where attempts may write."""


def instrumented(*packages: str) -> AbstractContextManager[None]:
    """Within, what is imported of these packages and of ours tells which of its lines run."""
    for name in [name for name in sys.modules if name.startswith("integrative_cam")]:
        del sys.modules[name]
    found: AbstractContextManager[None] = atheris.instrument_imports(include=["integrative_cam", *packages])
    return found


def chosen(data: bytes) -> Any:
    """The input as choices: numbers, texts, entries of lists."""
    return atheris.FuzzedDataProvider(data)


def noise(count: int, *sizes: int) -> Iterator[bytes]:
    """Random bytes to choose from: `count` of each size."""
    draw = random.Random(0)
    yield from (draw.randbytes(size) for size in sizes for _ in range(count))


def altered(document: Any, choices: Any) -> bytes:
    """A JSON document as text with a few of its values replaced, left out or doubled."""
    document = json.loads(json.dumps(document))
    for _ in range(choices.ConsumeIntInRange(1, 3)):
        place = document
        while isinstance(place, dict | list) and place:
            keys: list[Any] = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            key = choices.PickValueInList(keys)
            if isinstance(place[key], dict | list) and place[key] and choices.ConsumeIntInRange(0, 3):
                place = place[key]
                continue
            act = choices.ConsumeIntInRange(0, 5)
            if act == 0:
                del place[key]
            elif act == 1 and isinstance(place, list):
                place.append(json.loads(json.dumps(place[key])))
            else:
                place[key] = json.loads(json.dumps(choices.PickValueInList(list(ODD))))
            break
    return json.dumps(document).encode()


def spoiled(content: bytes, choices: Any) -> bytes:
    """The content with a few stretches of bytes replaced, left out or added; at times something else altogether."""
    changed = bytearray(content)
    for _ in range(choices.ConsumeIntInRange(0, 8)):
        at = choices.ConsumeIntInRange(0, len(changed))
        changed[at : at + choices.ConsumeIntInRange(0, 12)] = choices.ConsumeBytes(choices.ConsumeIntInRange(0, 12))
    if choices.ConsumeIntInRange(0, 9) == 0:
        return bytes(choices.ConsumeBytes(choices.remaining_bytes()))
    return bytes(changed)


class Findings:
    """Inputs tried, and the bugs among them, one per place in the code."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.tried = 0
        self.slowest = 0.0
        self.bugs: dict[str, tuple[str, bytes]] = {}
        self.told = 0.0

    def add(self, kind: str, detail: str, data: bytes) -> None:
        if kind not in self.bugs:
            self.bugs[kind] = (detail, data)
            self.tell()

    def tell(self) -> None:
        bugs = {kind: {"detail": detail, "input": data.hex()} for kind, (detail, data) in self.bugs.items()}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = {"tried": self.tried, "slowest": self.slowest, "peak_mib": round(peak), "bugs": bugs}
        draft = self.file.with_suffix(".draft")
        draft.write_text(json.dumps(found))
        draft.replace(self.file)
        self.told = time.monotonic()


def fuzz(attempt: Callable[[bytes], None], seeds: Iterable[bytes]) -> None:
    """Try inputs until the time is over; run.py says how long, and where the findings go.

    With a file as argument, only that input, with a traceback.
    """
    # Here: instrumented modules were imported anew, and with them the errors.
    from integrative_cam.errors import CamError

    warnings.simplefilter("ignore")
    if len(sys.argv) > 1:
        attempt(Path(sys.argv[1]).read_bytes())
        return
    findings = Findings(Path(os.environ["FUZZ_FINDINGS"]))
    corpus = Path(tempfile.mkdtemp(prefix="corpus-", dir=WORK))
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number:03d}").write_bytes(seed)
    events: list[str] = []
    watching = False

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in FORBIDDEN:
            events.append(f"{event} {arguments!r:.200}")
        elif watching and event == "open" and _writes(*arguments):
            events.append(f"writes {arguments[0]}")

    sys.addaudithook(audit)

    def one(data: bytes) -> None:
        nonlocal watching
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        watching = True
        try:
            attempt(data)
        except CamError:
            pass
        except Exception as error:
            watching = False
            frames = [
                frame for frame in traceback.extract_tb(error.__traceback__) if "integrative_cam" in frame.filename
            ]
            place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
            findings.add(f"{type(error).__name__} at {place}", traceback.format_exc(limit=-6), data)
        finally:
            watching = False
        took = time.process_time() - start
        findings.tried += 1
        findings.slowest = max(findings.slowest, took)
        if took > SLOW:
            findings.add("slow", f"{took:.1f} s", data)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if grown > GREEDY and findings.tried > 20:
            findings.add("memory", f"{grown / 2**20:.0f} MiB more", data)
        for event in events:
            findings.add(event, event, data)
        events.clear()
        if time.monotonic() - findings.told > 1:
            findings.tell()

    seconds = os.environ.get("FUZZ_SECONDS", "60")
    options = [f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=6000", "-max_len=8192", "-len_control=20"]
    options += [f"-artifact_prefix={os.environ.get('FUZZ_ARTIFACTS', '.')}/", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def _writes(path: Any, _: Any, flags: int) -> bool:
    """Whether a file outside of WORK is opened to be changed."""
    if not isinstance(path, str) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return False
    return not Path(path).absolute().is_relative_to(WORK) and not path.startswith("/dev/")
