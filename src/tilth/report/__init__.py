"""Reports: one HTML file from a run's folder, with everything in it and nothing fetched."""

from pathlib import Path


def write(run_folder: str | Path, out: Path | None = None) -> Path:
    """Write `report.html` into the run's folder (or to `out`) and return it. Raises TilthError if it is no run's folder.

    A run that failed or is not finished gets a report that says so; what cannot be read is listed at its end.
    """
    from tilth.report.page import write_report

    return write_report(Path(run_folder), out)
