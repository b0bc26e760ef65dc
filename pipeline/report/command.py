"""python -m pipeline.report: one page on a run or on several, or their key figures."""

import argparse
import json
import sys
from pathlib import Path

from pipeline.errors import ConfigError


def main(argv: list[str] | None = None) -> int:
    """Write the report of a run, or a comparison of several."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.report", description=main.__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run (run.dir); several are compared")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--out", metavar="FILE", help="where to write the page; default: report.html in the run folder, of one run"
    )
    where.add_argument(
        "--json", action="store_true", help="print key figures and wall time instead, a line of JSON for each run"
    )
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    runs = [Path(run) for run in arguments.runs]
    if arguments.json:
        from pipeline.report.key_figures import key_figures
        from pipeline.report.run_files import open_run

        for run in runs:
            print(json.dumps(key_figures(open_run(run))))
        return 0
    out = Path(arguments.out) if arguments.out else None
    if len(runs) == 1:
        from pipeline.report.run_page import write_report

        path = write_report(runs[0], out)
    else:
        from pipeline.report.comparison import write_comparison

        if out is None:
            raise ConfigError("a comparison belongs to no one run's folder; say where it goes with --out FILE")
        path = write_comparison(runs, out)
    print(f"report: {path}")
    return 0
