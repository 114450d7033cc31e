"""What a stage imports, for a server to have it at hand (see `warm`)."""

from pipeline.processes import logs

logs.silence()

import stages.best  # noqa: E402
import stages.ppo  # noqa: E402
import stages.rm  # noqa: E402
import stages.sft  # noqa: E402, F401
