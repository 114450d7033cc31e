"""Imports what a stage imports, so that a server has it loaded (see `warm`)."""

from pipeline.processes import logs

logs.silence()

import stages.best  # noqa: E402
import stages.ppo  # noqa: E402
import stages.preflight  # noqa: E402
import stages.rm  # noqa: E402
import stages.sft  # noqa: E402, F401
