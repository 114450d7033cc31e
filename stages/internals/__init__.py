"""Private interfaces of libraries, a module for each library.

`demo_models` uses one more. The rest of `stages` uses only public interfaces.

A library may change these without notice. `tests/unit/stages/internals` (`tests/vllm` for vLLM) then fails
by the interface's name.
"""
