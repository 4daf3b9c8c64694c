"""Lightning callbacks: everything that watches a run."""

from opdlight.callbacks.coverage import TeacherSupportCoverage
from opdlight.callbacks.mismatch import SampledTokenGaps
from opdlight.callbacks.progress import StageProgress
from opdlight.callbacks.samples import SampleTable
from opdlight.callbacks.throughput import Throughput

__all__ = ["SampleTable", "SampledTokenGaps", "StageProgress", "TeacherSupportCoverage", "Throughput"]
