"""Requests for a client to replay: the rows of past days as a file, all that an outside client is given of the factory.

The plant computes features once a day and offers none online, so a client cannot ask for them. A dataset's features are
as of each unit's own prediction time, so what the file holds is what a client would have known when it asked.

One parquet file, oldest prediction time first: the line's entity key, its prediction time, and the model's inputs as
they are sent, strings with "" for missing and float32 with NaN for missing. Its schema's metadata has `requests`, JSON:
`unit` (columns that say who is scored), `prediction_time` (one of them), `strings` and `floats` (the inputs).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aifactory.errors import DatasetDefect
from aifactory.factory import Factory
from aifactory.line import LineSpec
from aifactory.packaging import numeric_column
from aifactory.reasons import ReasonCode

if TYPE_CHECKING:
    import pyarrow as pa


def write_requests(f: Factory, spec: LineSpec, days: Sequence[str], path: Path, dir_md5: str = "") -> int:
    """Write the requests of some days.

    Args:
        f: the open factory.
        spec: the line.
        days: which days.
        path: the file.
        dir_md5: content of a dataset version, which is read from S3 alone; default the newest version.

    Returns:
        how many rows.

    Raises:
        DatasetDefect: there is no version, or it has not all of the days.
    """
    import pyarrow.parquet as pq

    datasets = f.datasets(spec)
    if not dir_md5:
        version = datasets.latest()
        if version is None:
            raise DatasetDefect(
                ReasonCode.DATASET_TOO_SMALL, f"{spec.line} has no dataset yet; ingest {', '.join(days)}"
            )
        dir_md5 = version.dir_md5
    table = request_table(spec, datasets.read_content(dir_md5, days))
    part = path.with_name(f"{path.name}.part")
    pq.write_table(table, part)
    part.replace(path)
    return int(table.num_rows)


def request_table(spec: LineSpec, units: pa.Table) -> pa.Table:
    """The rows of a dataset as requests."""
    import pyarrow as pa
    import pyarrow.compute as pc

    model = spec.model
    unit = [*model.entity_key, model.prediction_time]
    columns = {name: units[name] for name in unit}
    columns |= {name: pc.fill_null(units[name].cast(pa.string()), "") for name in model.categorical}
    columns |= {name: pa.array(numeric_column(units, name)) for name in model.numeric if name not in columns}
    said = {
        "unit": unit,
        "prediction_time": model.prediction_time,
        "strings": model.categorical,
        "floats": model.numeric,
    }
    table = pa.table(columns).sort_by([(name, "ascending") for name in [model.prediction_time, *model.entity_key]])
    return table.replace_schema_metadata({"requests": json.dumps(said)})
