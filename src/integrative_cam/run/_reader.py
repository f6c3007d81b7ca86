"""What a run left, read back: a table without maps, and explanations one at a time."""

from __future__ import annotations

import io
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, overload

from ..errors import CamError, ExplanationError, InputError, first_line
from ..explanation import Explanation
from ..storage import recipe_of
from ._failures import Failure
from ._record import read_records
from ._store import DONE, MANIFEST, SHARDS, Store
from ._table import GROUP, HEAVY, META, explanation_of, schema

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

OPEN = 8
"""Groups of rows that are kept in memory."""


class Results(Sequence[Explanation]):
    """The explanations of a run, one per image and target, in the order of the source.

    >>> results = Results("out")
    >>> results[17].map                      # (1, height, width), within 1/510 of what was computed
    >>> results.table()                      # all rows as a pyarrow.Table, without maps
    >>> results.of("folder/photo.jpg")       # the explanations of one image, a target each

    An `Explanation` from here is of one image, on the CPU, in float32. Its scores, weights, `completeness`, `output`,
    `target` and `recipe` are those computed; its map is quantised to 8 bits. Layers' own maps are not stored: they have
    no elements, shape (1, 0, 0). Callables in the recipe are given by name. Of a run that goes on, it shows what was
    finished when it was opened.

    Args:
        place: the folder or URL that the run wrote to.

    Raises:
        ExplanationError: it holds no run, or a shard of it cannot be read.
    """

    def __init__(self, place: str) -> None:
        self.store = Store(str(place))
        self.manifest = self.store.manifest()
        records, broken = read_records(self.store)
        if broken:
            raise ExplanationError(f"{place}: {DONE}/{broken[0]} is no record of a part; run the same command again.")
        self.records = tuple(records[number] for number in sorted(records))
        self.shards = tuple(shard for record in self.records for shard in record.shards)
        self._ends = list(accumulate(shard.rows for shard in self.shards))
        self._file = lru_cache(maxsize=OPEN)(self._open)
        self._group = lru_cache(maxsize=OPEN)(self._read)
        try:
            self.recipe = recipe_of(self.manifest["recipe"])
        except (KeyError, TypeError) as error:
            raise ExplanationError(f"{place}: {error} is missing in {MANIFEST}, or wrong.") from None

    def __len__(self) -> int:
        """Rows of the finished parts."""
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Explanation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Explanation]: ...
    def __getitem__(self, index: int | slice) -> Explanation | list[Explanation]:
        """The explanation in a row."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row, about = self._row(index)
        with _readable(f"{self.store.place}: row {index}"):
            return explanation_of(row, about, self.recipe)

    def of(self, image: str) -> list[Explanation]:
        """The explanations of one image, by its key.

        Raises:
            InputError: there are none.
        """
        rows = [row for row, name in enumerate(self.table(["image"])["image"].to_pylist()) if name == image]
        if not rows:
            raise InputError(f"{self.store.place} has no results for {image!r}; see failures, or table()['image'].")
        return [self[row] for row in rows]

    def thumbnail(self, index: int) -> Image:
        """The small overlay in a row.

        Raises:
            InputError: the run kept none.
        """
        from PIL import Image

        content = self._row(index)[0]["thumbnail"]
        if content is None:
            raise InputError(f"{self.store.place} has no thumbnails; ask for them with --thumbnails when it is made.")
        return Image.open(io.BytesIO(content), formats=["JPEG"])

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows; by default all columns but map, output, thumbnail and seen."""
        import pyarrow as pa

        wanted = columns or [name for name in schema().names if name not in HEAVY]
        tables = []
        for shard in self.shards:
            with _readable(shard.name):
                tables.append(self._file(shard.name).read(columns=list(wanted)).replace_schema_metadata(None))
        return pa.concat_tables(tables) if tables else schema().empty_table().select(wanted)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Images without results."""
        return tuple(failure for record in self.records for failure in record.all_failures)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, in the order of the columns layer_weights and the like."""
        if not len(self):
            return ()
        return tuple(name for name, _ in self._row(0)[1]["layers"])

    def _row(self, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number = bisect_right(self._ends, index)
        within = index - (self._ends[number - 1] if number else 0)
        name = self.shards[number].name
        with _readable(name):
            (row,) = self._group(name, within // GROUP).slice(within % GROUP, 1).to_pylist()
            return row, json.loads(self._file(name).schema_arrow.metadata[META])

    def _open(self, name: str) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(self.store.files.open(self.store.path(f"{SHARDS}/{name}"), "rb"))

    def _read(self, name: str, group: int) -> pa.Table:
        return self._file(name).read_row_group(group)


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn any error into an ExplanationError: a broken file fails anywhere."""
    try:
        yield
    except CamError:
        raise
    except Exception as error:
        raise ExplanationError(f"{what} cannot be read: {first_line(error)}") from None
