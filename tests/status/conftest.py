"""What tests of the events share with those of the log."""

from tests.host.conftest import quiet_log  # noqa: F401 (a fixture)
