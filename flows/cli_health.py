"""`bagger audit`, `gc`, `runs` and `migrate`: whether the store is whole, and what nothing needs."""

from flows.console import command_group

app = command_group()
