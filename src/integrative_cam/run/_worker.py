"""One worker: the network loaded once; part after part decoded, explained and written."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ..errors import InputError, ModelError, RecipeError, TapError, TargetError, first_line
from ._archives import Item, opened
from ._decode import Decoders, Decoding, Sample, pieces
from ._failures import DestinationError, Failure, SourceError
from ._job import Job
from ._record import Record, Shard, failures_in
from ._sources import Part
from ._store import DONE, SHARDS, Store
from ._table import as_parquet, rows_of

GROUP = 32
"""Rows that are read together when one is asked for."""
SILENCE = 16
"""So many images in a row without an answer mean that the source is down."""
META = b"integrative_cam"

Row = dict[str, Any]


class Worker:
    """Explains parts with one network on one device. Use as a context.

    Args:
        job: what to do.
        fingerprint: of the network that must be found.
        tell: called with the number of images that are dealt with, as they are.

    Raises:
        CamError: the network cannot be had.
    """

    def __init__(self, job: Job, fingerprint: str, tell: Callable[[int], None] = lambda _: None) -> None:
        self.job = job
        self.tell = tell
        self.network = job.network(fingerprint)
        self.device = device_of(job.device)
        self.network.model.to(self.device)
        self.targets = job.targets(self.network)
        self.store = Store(job.dest)
        self.decoders = Decoders(job.decoders, Decoding(self.network.preprocessing, job.patience, job.thumbnail))
        self.writer = ThreadPoolExecutor(1)
        self.limit = job.batch
        self.batch_reductions = 0
        self.silent = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.writer.shutdown(wait=False, cancel_futures=True)
        self.decoders.__exit__(kind, error, at)

    def __call__(self, part: Part) -> Record:
        """Explain what is missing of a part; what is written stays, whatever happens.

        The record says what stopped the work, if anything did: no error comes out of here.
        """
        deaths = self.decoders.deaths
        try:
            shards, failures = self._shards(part)
        except (DestinationError, TargetError, TapError, RecipeError, ModelError) as error:
            # None of these is about one image.
            return Record(part.number, unfinished=first_line(error), fatal=True)
        except SourceError as error:
            return Record(part.number, unfinished=first_line(error), fatal=isinstance(error, SourceDownError))
        except Exception as error:
            said = f"unexpected {type(error).__name__}: {first_line(error)}"
            return Record(part.number, unfinished=said, fatal=True)
        record = Record(part.number, shards, failures, self.decoders.deaths - deaths)
        try:
            self.store.write(f"{DONE}/{part.number:07d}.json", record.as_json())
        except DestinationError as error:
            return Record(part.number, unfinished=first_line(error), fatal=True)
        return record

    def _shards(self, part: Part) -> tuple[tuple[Shard, ...], tuple[Failure, ...]]:
        """The part's shards, written or found, and the failure that cut it short."""
        done: list[Shard] = []
        pending: Future[Shard] | None = None
        failures: list[Failure] = []
        with opened(part, self.job.patience) as items:
            for number, piece in enumerate(pieces(_until_broken(items, part, failures), self.job.shard)):
                name = f"{part.number:07d}-{number:04d}.parquet"
                found = self._found(name)
                if found is not None and found.final:
                    self.tell(len(piece))
                    ready: Future[Shard] = Future()
                    ready.set_result(found)
                else:
                    # One shard is encoded and written while the next is explained.
                    ready = self._explained(name, piece, pending)
                if pending is not None:
                    done.append(pending.result())
                pending = ready
        if pending is not None:
            done.append(pending.result())
        return tuple(done), tuple(failures)

    def _found(self, name: str) -> Shard | None:
        """A shard that an earlier run left whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        content = self.store.read(f"{SHARDS}/{name}")
        if content is None:
            return None
        try:
            file = pq.ParquetFile(pa.BufferReader(content))
            about = json.loads(file.schema_arrow.metadata[META])
            failures, counts = failures_in(about["failures"]), (int(about["images"]), int(about["halvings"]))
        except (pa.ArrowException, OSError, TypeError, KeyError, ValueError, RecursionError):
            return None  # cut off by something stronger than kill -9; it is written again
        return Shard(name, len(content), counts[0], file.metadata.num_rows, failures, counts[1])

    def _explained(self, name: str, items: list[Item], before: Future[Shard] | None) -> Future[Shard]:
        batch_reductions = self.batch_reductions
        rows: list[Row] = []
        failures: list[Failure] = []
        about: dict[str, Any] = {"layers": [], "bias_layers": []}
        batch: list[Sample] = []
        for found in self.decoders(items):
            if before is not None and before.done():
                before.result()  # a disk that is full is noticed at once
            if isinstance(found, Failure):
                failures.append(found)
                self.tell(1)
                self.silent = self.silent + 1 if found.kind == "source" else 0
                if self.silent >= SILENCE:
                    raise SourceDownError(
                        f"The source stopped answering: {SILENCE} images in a row did not come, the last "
                        f"{found.reason}. Run the same command again to continue."
                    )
                continue
            self.silent = 0
            batch.append(found)
            if len(batch) == self.job.batch:
                self._explain(batch, rows, failures, about)
                batch = []
        self._explain(batch, rows, failures, about)
        order = {item.key: place for place, item in enumerate(items)}
        rows.sort(key=lambda row: (order[row["image"]], row["rank"]))
        failures.sort(key=lambda failure: order[failure.key])
        images = len(items) - len(failures)
        return self.writer.submit(
            self._write, name, rows, failures, images, self.batch_reductions - batch_reductions, about
        )

    def _write(
        self,
        name: str,
        rows: list[Row],
        failures: list[Failure],
        images: int,
        batch_reductions: int,
        about: dict[str, Any],
    ) -> Shard:
        about = {
            **about,
            "images": images,
            "halvings": batch_reductions,
            "failures": [asdict(each) for each in failures],
        }
        if self.job.thumbnail:
            rows = [{**row, "thumbnail": _overlay(row)} for row in rows]
        content = as_parquet(rows, {META: json.dumps(about).encode()}, GROUP)
        self.store.write(f"{SHARDS}/{name}", content)
        return Shard(name, len(content), images, len(rows), tuple(failures), batch_reductions)

    def _explain(
        self, samples: Sequence[Sample], rows: list[Row], failures: list[Failure], about: dict[str, Any]
    ) -> None:
        """Add the rows of a batch; where memory does not last, half at a time from now on; where something else
        fails, one by one.
        """
        alone = False
        start = 0
        while start < len(samples):
            batch = samples[start : start + (1 if alone else self.limit)]
            try:
                rows += self._rows(batch, about)
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
                self._free()
            if len(batch) == 1:
                failures.append(Failure(batch[0].key, "memory" if full else "explain", reason))
                self.tell(1)
                start += 1
            elif full:
                self.batch_reductions += 1
                self.limit = len(batch) // 2
            else:
                alone = True

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _rows(self, samples: Sequence[Sample], about: dict[str, Any]) -> list[Row]:
        images = torch.from_numpy(np.stack([sample.values for sample in samples])).to(self.device)
        rows: list[Row] = []
        half = torch.autocast(
            self.device.type, getattr(torch, self.job.precision), enabled=self.job.precision != "float32"
        )
        with half, warnings.catch_warnings():
            # A blank map is no accident here: its area is 0.
            warnings.filterwarnings("ignore", message="The map of image")
            for rank, explanation in enumerate(
                self.job.method.explain_targets(self.network.model, images, self.targets), 1
            ):
                rows += rows_of(explanation, rank, samples, self.network, self.job.threshold)
                about["layers"] = [[layer.name, layer.kind] for layer in explanation.layers]
                about["bias_layers"] = [layer.name for layer in explanation.bias_layers]
        return rows


def start_worker(job: Job, fingerprint: str, place: int, tell: Callable[[int], None]) -> Worker:
    """The worker at a place of a pool, with a CUDA device of its own where there are several."""
    devices = torch.cuda.device_count() if job.device in ("auto", "cuda") else 0
    return Worker(replace(job, device=f"cuda:{place % devices}") if devices else job, fingerprint, tell)


class SourceDownError(SourceError):
    """The whole source does not answer, rather than for one image."""


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is some.

    Raises:
        InputError: there is none.
    """
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


def _overlay(row: Row) -> bytes:
    import io

    from PIL import Image

    from ..render import overlay

    picture = Image.open(io.BytesIO(row["thumbnail"]))
    content = io.BytesIO()
    overlay(torch.from_numpy(row["map"]).float() / 255, picture).save(content, "JPEG", quality=85)
    return content.getvalue()
