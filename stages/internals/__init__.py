"""Private interfaces of libraries, a module for each library. The rest of `stages` uses only public ones.

A library may change these without notice. `tests/unit/stages/internals` then fails by the interface's name.
"""
