"""The names of the files in an adapter's folder: PEFT's own, and that of a scalar head beside them."""

CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
HEAD_FILE = "head.safetensors"
