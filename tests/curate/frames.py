"""Small frames for steps, and what a step says about their rows."""

from collections.abc import Sequence

import daft
import pyarrow as pa

from tilth.contracts import Step


def frame(texts: Sequence[str | None], **columns: Sequence[object]) -> daft.DataFrame:
    """Rows '0', '1', ... with these texts, none removed."""
    ids = [str(number) for number in range(len(texts))]
    table = pa.table({"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.string()), **columns})
    return daft.from_arrow(table).with_column("removed", daft.lit(None).cast(daft.DataType.string()))


def fates(step: Step, rows: daft.DataFrame) -> dict[str, str | None]:
    """id -> why removed, None while kept, after fitting and applying the step."""
    step.fit(rows)
    result = step(rows).to_pydict()
    assert result["id"] == rows.to_pydict()["id"], "a step must neither drop nor move rows"
    return dict(zip(result["id"], result["removed"]))


def kept(step: Step, rows: daft.DataFrame) -> list[str]:
    """Ids of the rows a step leaves."""
    return [name for name, reason in fates(step, rows).items() if reason is None]
