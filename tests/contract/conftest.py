"""The contract suites are a library; their asserts are to explain themselves as those of test files do."""

import pytest

pytest.register_assert_rewrite("runner.testing.transport_contract", "runner.testing.store_contract")
