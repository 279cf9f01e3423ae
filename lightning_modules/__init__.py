"""Everything that trains: Lightning modules, the objectives they minimise, rollouts, and the command line."""

from lightning_modules.bfcl import BFCLModule
from lightning_modules.grpo import GRPOModule
from lightning_modules.srml import SRMLModule

__all__ = ["BFCLModule", "GRPOModule", "SRMLModule"]
