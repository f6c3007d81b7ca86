"""One worker: the network loaded once; part after part decoded, explained and written."""

from __future__ import annotations

import gc
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ..errors import CamError, InputError, RecipeError, TapError, TargetError, first_line
from ..models._image import encode_image
from ._archives import Item, opened
from ._decode import Decoders, Decoding, Sample, pieces
from ._failures import Failure, SourceError
from ._job import Job
from ._pool import Tell
from ._record import Record, Shard, failures_in
from ._sources import Part
from ._store import DONE, SHARDS, Store
from ._table import META, as_parquet, rows_of

SILENCE = 16
"""After so many images in a row without an answer, the source is down."""


class SourceDownError(SourceError):
    """The whole source does not answer, rather than for one image."""


@dataclass
class _Draft:
    """A shard while its images are explained."""

    name: str
    items: list[Item]
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    layers: list[list[str]] = field(default_factory=list)
    bias_layers: list[str] = field(default_factory=list)
    score: str | None = None
    batch_reductions: int = 0


class Worker:
    """Explains parts with one network on one device, checked by its fingerprint. Use as a context.

    Workers of a machine take its CUDA devices in turn, by `place`. `tell` gets the number of images done since the last
    call.
    """

    def __init__(self, job: Job, fingerprint: str, place: int = 0, tell: Tell = lambda _: None) -> None:
        self.job = job
        self.tell = tell
        self.network = job.network(fingerprint)
        devices = torch.cuda.device_count() if job.device in ("auto", "cuda") else 0
        self.device = device_of(f"cuda:{place % devices}" if devices else job.device)
        self.network.model.to(self.device)
        self.targets = job.targets(self.network)
        self.store = Store(job.dest)
        self.decoders = Decoders(job.decoders, Decoding(self.network.preprocessing, job.patience, job.thumbnail))
        self.writer = ThreadPoolExecutor(1)
        self.limit = job.batch
        self.silent = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.writer.shutdown(wait=False, cancel_futures=True)
        self.decoders.__exit__(kind, error, at)

    def __call__(self, part: Part) -> Record:
        """Explain what is missing of a part; what is written stays, whatever happens.

        Raises no error: the record says what stopped the work, if anything did. Only a source that does not answer for
        this part leaves the others a chance.
        """
        deaths = self.decoders.deaths
        try:
            shards, failures = self._shards(part)
            record = Record(part.number, shards, failures, self.decoders.deaths - deaths)
            self.store.write(f"{DONE}/{part.number:07d}.json", record.as_json())
        except Exception as error:
            reason = first_line(error)
            if not isinstance(error, CamError):
                reason = f"unexpected {type(error).__name__}: {reason}"
            fatal = not isinstance(error, SourceError) or isinstance(error, SourceDownError)
            return Record(part.number, unfinished=reason, fatal=fatal)
        return record

    def _shards(self, part: Part) -> tuple[tuple[Shard, ...], tuple[Failure, ...]]:
        """The part's shards, written now or by an earlier run, and the failure that cut it short."""
        done: list[Shard] = []
        pending: Future[Shard] | None = None
        failures: list[Failure] = []
        with opened(part, self.job.patience) as items:
            for number, piece in enumerate(pieces(_until_broken(items, part, failures), self.job.shard)):
                name = f"{part.number:07d}-{number:04d}.parquet"
                stored = self._stored(name)
                if stored is not None and stored.final:
                    self.tell(len(piece))
                    ready: Future[Shard] = Future()
                    ready.set_result(stored)
                else:
                    # One shard is encoded and written while the next is explained.
                    ready = self.writer.submit(self._write, self._explained(_Draft(name, piece), pending))
                if pending is not None:
                    done.append(pending.result())
                pending = ready
        if pending is not None:
            done.append(pending.result())
        return tuple(done), tuple(failures)

    def _stored(self, name: str) -> Shard | None:
        """A complete shard that an earlier run left."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        content = self.store.read(f"{SHARDS}/{name}")
        if content is None:
            return None
        try:
            file = pq.ParquetFile(pa.BufferReader(content))
            about = json.loads(file.schema_arrow.metadata[META])
            failures, images, reductions = failures_in(about["failures"]), int(about["images"]), int(about["halvings"])
        except (pa.ArrowException, OSError, TypeError, KeyError, ValueError, RecursionError):
            return None  # cut off by something stronger than kill -9; it is written again
        return Shard(name, len(content), images, file.metadata.num_rows, failures, reductions)

    def _explained(self, draft: _Draft, before: Future[Shard] | None) -> _Draft:
        batch: list[Sample] = []
        for decoded in self.decoders(draft.items):
            if before is not None and before.done():
                before.result()  # a disk that is full is noticed at once
            if isinstance(decoded, Failure):
                draft.failures.append(decoded)
                self.tell(1)
                self.silent = self.silent + 1 if decoded.kind == "source" else 0
                if self.silent >= SILENCE:
                    raise SourceDownError(
                        f"The source stopped answering: {SILENCE} images in a row did not come, the last "
                        f"{decoded.reason}. Run the same command again to continue."
                    )
                continue
            self.silent = 0
            batch.append(decoded)
            if len(batch) == self.job.batch:
                self._explain(batch, draft)
                batch = []
        self._explain(batch, draft)
        order = {item.key: place for place, item in enumerate(draft.items)}
        draft.rows.sort(key=lambda row: (order[row["image"]], row["rank"]))
        draft.failures.sort(key=lambda failure: order[failure.key])
        return draft

    def _write(self, draft: _Draft) -> Shard:
        images = len(draft.items) - len(draft.failures)
        about = {
            "layers": draft.layers,
            "bias_layers": draft.bias_layers,
            "score": draft.score,
            "images": images,
            "halvings": draft.batch_reductions,
            "failures": [asdict(failure) for failure in draft.failures],
        }
        if self.job.thumbnail:
            draft.rows = [{**row, "thumbnail": _overlay(row)} for row in draft.rows]
        content = as_parquet(draft.rows, about)
        self.store.write(f"{SHARDS}/{draft.name}", content)
        failures = tuple(draft.failures)
        return Shard(draft.name, len(content), images, len(draft.rows), failures, draft.batch_reductions)

    def _explain(self, samples: Sequence[Sample], draft: _Draft) -> None:
        """Add the rows of a batch: in halves from now on if memory runs out, one by one if anything else fails."""
        alone = False
        start = 0
        while start < len(samples):
            batch = samples[start : start + (1 if alone else self.limit)]
            try:
                draft.rows += self._rows(batch, draft)
            except Exception as error:  # a network may raise anything
                # The error must be let go of before memory is asked for again: its frames hold tensors.
                full, reason = _out_of_memory(error), first_line(error)
                if isinstance(error, (TargetError, TapError, RecipeError)):
                    raise
            else:
                self.tell(len(batch))
                start += len(batch)
                continue
            if full:
                gc.collect()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            if len(batch) == 1:
                draft.failures.append(Failure(batch[0].key, "memory" if full else "explain", reason))
                self.tell(1)
                start += 1
            elif full:
                draft.batch_reductions += 1
                self.limit = len(batch) // 2
            else:
                alone = True

    def _rows(self, samples: Sequence[Sample], draft: _Draft) -> list[dict[str, Any]]:
        images = torch.from_numpy(np.stack([sample.values for sample in samples])).to(self.device)
        rows: list[dict[str, Any]] = []
        precision = self.job.precision
        half = torch.autocast(self.device.type, getattr(torch, precision), enabled=precision != "float32")
        with half, warnings.catch_warnings():
            # A blank map needs no warning here: its area is 0.
            warnings.filterwarnings("ignore", message="The map of image")
            method = self.job.method.for_task(self.network.task)
            explanations = method.explain_targets(self.network.model, images, self.targets)
            for rank, explanation in enumerate(explanations, 1):
                rows += rows_of(explanation, rank, samples, self.network, self.job.threshold)
                draft.layers = [[layer.name, layer.kind] for layer in explanation.layers]
                draft.bias_layers = [layer.name for layer in explanation.bias_layers]
                # Labels are explained at their logits, whatever the job's recipe says.
                draft.score = explanation.recipe.score if explanation.recipe else None
        return rows


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is some. InputError where there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is not known; there are auto, cpu, cuda, cuda:1, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices.")
    return device


def _until_broken(items: Iterable[Item], part: Part, failures: list[Failure]) -> Iterator[Item]:
    """The items of an archive up to where it breaks off, which is a failure of its own."""
    try:
        yield from items
    except InputError as error:
        failures.append(Failure(part.name, "image", first_line(error)))
    except OSError as error:
        raise SourceError(f"{part.name}: {first_line(error)}") from None


def _out_of_memory(error: BaseException) -> bool:
    # torch.OutOfMemoryError came with 2.5; the CPU's allocator has no class of its own.
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _overlay(row: dict[str, Any]) -> bytes:
    from PIL import Image

    from ..render import overlay

    picture = Image.open(io.BytesIO(row["thumbnail"]))
    drawn = overlay(torch.from_numpy(row["map"]).float() / 255, picture, (0, 0, *picture.size))
    return encode_image(drawn, "JPEG", quality=85)
