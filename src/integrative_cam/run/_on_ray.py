"""The engine for a cluster: Ray Data hands parts to actors that have loaded the network."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError, first_line, import_extra
from ._job import Job
from ._record import Record
from ._sources import Part, filesystem, is_local
from ._worker import Worker


class Actor:
    """A worker as Ray Data wants it: batches of one part in, their records out."""

    def __init__(self, job: Job, fingerprint: str) -> None:
        try:
            self.worker: Worker | str = Worker(job, fingerprint)
        except Exception as error:  # Ray would start it again for ever
            self.worker = first_line(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Explain the part; what goes wrong is in the record, so that Ray retries deaths only."""
        part = pickle.loads(batch["part"][0])
        if isinstance(self.worker, str):
            record = Record(part.number, unfinished=self.worker, fatal=True)
        else:
            record = self.worker(part)
        return {"record": [record.as_json().decode()]}


def run_ray(
    job: Job, fingerprint: str, parts: Sequence[Part], workers: int | None, address: str | None
) -> Generator[Record]:
    """The record of each part as it comes, of a cluster at `address`, or of a Ray started here for this run.

    Parts go to between 1 and `workers` actors, as many as Ray finds or makes room for; each asks for a GPU, or for as
    many processors as it has decoders. Back-pressure, and a new actor for one that dies, are Ray's.
    """
    for place in (job.source, job.dest):
        if place.startswith("memory:"):
            raise InputError(f"{place}: is in the memory of this process, where Ray's workers cannot reach it.")
    # Read when ray is imported; a run over private images has nothing to report home.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import_extra("ray.data", "--engine ray", "ray")
    import ray
    import ray.data

    ours = not ray.is_initialized()
    if ours:
        options: dict[str, Any] = {"address": address} if address else {"include_dashboard": False}
        ray.init(logging_level=logging.ERROR, log_to_driver=False, configure_logging=True, **options)
    try:
        settings = ray.data.DataContext.get_current()
        settings.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        gpus, processors = _needs(job, dict(ray.cluster_resources()))  # type: ignore[no-untyped-call]
        # Actors have a working directory of their own.
        job = replace(
            job, source=_reached(job.source), dest=_reached(job.dest), model=_reached_model(job.model),
            device="cuda" if gpus else "cpu",
        )  # fmt: skip
        rows = [{"part": pickle.dumps(part)} for part in parts]
        records = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Actor,
            batch_size=1,
            fn_constructor_args=(job, fingerprint),
            num_cpus=processors,
            num_gpus=gpus or None,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers or len(rows), len(rows))),
        )
        for row in records.iter_rows():
            yield Record.of(row["record"])
    finally:
        if ours:
            ray.shutdown()


def _needs(job: Job, cluster: dict[str, float]) -> tuple[int, int]:
    """GPUs and processors of one actor."""
    if job.device.startswith("cuda") and not cluster.get("GPU"):
        raise InputError(f"device {job.device!r}: the cluster has no GPU.")
    gpus = int(job.device != "cpu" and cluster.get("GPU", 0) > 0)
    return gpus, max(1, min(job.decoders, int(cluster.get("CPU", 1))))


def _reached(place: str) -> str:
    """A path that does not depend on the working directory."""
    files, path = filesystem(place)
    return path if is_local(files) else place


def _reached_model(name: str) -> str:
    """The same for a network whose name holds a path: FILE.onnx, FILE.py:FACTORY, hf/FOLDER."""
    library = "hf/" if name.startswith("hf/") else ""
    path, colon, rest = name.removeprefix(library).partition(":")
    return f"{library}{Path(path).absolute()}{colon}{rest}" if Path(path).exists() else name
