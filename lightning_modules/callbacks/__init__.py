"""Output of a run: terminal, TensorBoard, files in its folder, and the estimate of its memory."""

from lightning_modules.callbacks.files import ExportHF, MetricsCSV, RolloutWriter
from lightning_modules.callbacks.samples import SampleTable

__all__ = ["ExportHF", "MetricsCSV", "RolloutWriter", "SampleTable"]
