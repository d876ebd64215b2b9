"""The configuration as the original samplicate has it."""
