"""Private interfaces of libraries, a module for each library.

`VllmEngine.close` and `demo_models` use one more each. The rest of `stages` uses only public interfaces.

A library may change these without notice. `tests/unit/stages/internals` then fails by the interface's name.
"""
