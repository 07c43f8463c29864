"""The fault suite: docs/FAULTS.md says what it does, scripts/faults runs it."""
