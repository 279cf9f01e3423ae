"""The pinned sets agree with each other, and with what the project asks for."""

import configparser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
APART = {"numpy"}  # of which numba, that vLLM brings, wants an older one


def pins(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in found}
    assert len(versions) == len(found)
    return versions


def test_a_gpu_gets_what_was_tested_but_for_what_vllm_wants():
    tested, gpu = pins("constraints.txt"), pins("constraints-gpu.txt")
    shared = tested.keys() & gpu.keys()
    assert {"torch", "transformers", "lightning", "datasets"} <= shared
    assert {name for name in shared if tested[name] != gpu[name]} == APART


def test_each_set_is_inside_the_ranges_of_the_project():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = dict(config["options.extras_require"])
    for name, chosen in {
        "constraints.txt": extras.keys() - {"vllm"},
        "constraints-gpu.txt": {"vllm", "judge", "dev"},
    }.items():
        known = pins(name)
        wanted = [config["options"]["install_requires"], *(extras[key] for key in chosen)]
        for requirement in map(Requirement, filter(None, "\n".join(wanted).splitlines())):
            package = canonicalize_name(requirement.name)
            if package != "funreason-lightning":
                assert package in known and known[package] in requirement.specifier, (name, str(requirement))
