"""The sections of an experiment, one pydantic model each. Import them from `configs.schema`."""
