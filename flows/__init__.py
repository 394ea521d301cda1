"""The command line and the Prefect flows; every process of a run that starts here passes through this package."""

from nextquill_core.environment import set_torch_variables

set_torch_variables()  # before a flow imports torch
