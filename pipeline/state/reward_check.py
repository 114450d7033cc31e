"""What `tristage check rm` found about the reward model of a run: `RUN/check/rm.json`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from configs.errors import UserError
from configs.regular_file import read_regular_file

FOLDER, FILE = "check", "rm.json"  # of the run; of the folder
ALL, CURVE = "all", ("25 %", "50 %")  # variants: all rankings, and parts of them
SOUND, UNSOUND, TOO_FEW = "as it should be", "not as it should be", "too few prompts to tell"


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Interval(_Record):
    """A mean over prompts with its 95 % interval."""

    value: float
    low: float
    high: float
    n: float


class Checked(_Record):
    """The held-out accuracy after some rankings, and whether it is what it should be: "" if it may be any."""

    accuracy: Interval
    verdict: str


class RewardCheck(_Record):
    """A finished check.

    Attributes:
        reward_model: SHA-256 of the adapter that was checked; "" if it had other settings, or was not there.
        prompts: that the variant `all` trained on.
        prompts_of_run: that stage rm trains on; more than `prompts` after `--rows`.
        variants: by name, such as `all`, `50 %` and `shuffled`.
        gain: the accuracy after all rankings less that after half of them, paired by prompt; None without
            a curve.
    """

    reward_model: str
    prompts: int
    prompts_of_run: int
    variants: dict[str, Checked] = Field(min_length=1)
    gain: Interval | None = None

    @model_validator(mode="after")
    def _gain_of_a_curve(self) -> RewardCheck:
        if self.gain is not None and not {*CURVE, ALL} <= self.variants.keys():
            raise ValueError("there is a gain, but not the accuracies of the curve")
        return self


def read_check(run_dir: Path) -> RewardCheck | None:
    """The check of the reward model in `run_dir`; None if there is none.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    file = run_dir / FOLDER / FILE
    if not file.exists():
        return None
    try:
        return RewardCheck.model_validate_json(read_regular_file(file))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}. Move it away.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        fault = f"{where:.60}: {first['msg']:.100}"
        raise UserError(f"{file}: damaged ({fault}). Move it away, or run tristage check rm again.") from None
