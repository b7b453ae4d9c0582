"""The public test kit: virtual time, flows without a broker, and the contracts of the ports."""

from runner.testing.clock import FakeClock
from runner.testing.flow import FlowKit, KitRun, run_flow

__all__ = ["FakeClock", "FlowKit", "KitRun", "run_flow"]
