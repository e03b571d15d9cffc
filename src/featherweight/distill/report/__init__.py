"""What a student costs and keeps of its teacher."""

from featherweight.distill.report.picture import picture
from featherweight.distill.report.report import DistillReport, distill_report

__all__ = ["DistillReport", "distill_report", "picture"]
