"""The configuration in the form of the original samplicate."""
