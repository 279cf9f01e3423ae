"""What a run shows and leaves behind: the terminal, TensorBoard, files in its folder."""

from lightning_modules.callbacks.files import ExportHF, MetricsCSV, RolloutWriter, SampleTable

__all__ = ["ExportHF", "MetricsCSV", "RolloutWriter", "SampleTable"]
