"""One self-contained page on a run, or on several beside each other: `python -m pipeline.report RUN...`.

events.py, faults.py            what happened, and what the run survived
wall_time.py                    where each second went
loss.py, throughput.py, probe_curve.py, pictures.py, data_set.py
a part of the page each
run_page.py, comparison.py      the parts put together
figures/, templates/            how they are drawn
"""

from pipeline.report.comparison import write_comparison
from pipeline.report.events import read_events
from pipeline.report.loss import LossFall, loss_fall
from pipeline.report.run_page import write_report
from pipeline.report.wall_time import WallTime, account

__all__ = ["LossFall", "WallTime", "account", "loss_fall", "read_events", "write_comparison", "write_report"]
