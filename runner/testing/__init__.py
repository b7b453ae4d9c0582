"""The public test kit: virtual time, flows without a broker, and the contracts of the ports."""

from runner.records import Error
from runner.testing.clock import FakeClock
from runner.testing.flow import FlowKit, KitRun, SentCommand, run_flow

__all__ = ["Error", "FakeClock", "FlowKit", "KitRun", "SentCommand", "run_flow"]
