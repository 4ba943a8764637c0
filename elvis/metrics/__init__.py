"""Pure metric functions: arrays in, numbers out; shared by the core and the downstream tasks."""
