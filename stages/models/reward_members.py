"""The members of a reward model that is an ensemble: roles of their own, in folders below the first one's.

`RUN/rm/adapter` is the first member, as if it were alone. `member-2`, `member-3`, … lie in it.
"""

from __future__ import annotations

from pathlib import Path

from stages.models.adapter_files import unusable
from stages.models.roles import Role, Roles

PREFIX = "member-"


def member_role(number: int) -> str:
    """The name of the role of member `number`, from 1."""
    return str(Role.REWARD) if number == 1 else f"{Role.REWARD}_{number}"


def members_of(roles: Roles) -> list[str]:
    """The roles of all members that `roles` has, in order."""
    found: list[str] = []
    while (role := member_role(len(found) + 1)) in roles:
        found.append(role)
    return found


def member_folders(folder: Path) -> list[Path]:
    """The folder of each member of the reward model in `folder`, in order: `folder` itself is the first.

    Raises:
        UserError: a member is missing.
    """
    count = 1 + len(list(folder.glob(f"{PREFIX}*")))
    folders = [folder, *(folder / f"{PREFIX}{number}" for number in range(2, count + 1))]
    for member in folders:
        if not member.is_dir():
            raise unusable(folder, f"it has {count - 1} folders {PREFIX}N, and no {member.name}")
    return folders


def members_in(folder: Path) -> list[tuple[str, Path]]:
    """Role and folder of each member of the reward model in `folder`, in order.

    Raises:
        UserError: a member is missing.
    """
    return [(member_role(number), member) for number, member in enumerate(member_folders(folder), start=1)]


def add_members(roles: Roles, folder: Path) -> None:
    """Give `roles` every member of the reward model in `folder`, frozen.

    Raises:
        UserError: a folder is no adapter for this base.
    """
    for role, member in members_in(folder):
        roles.add_from(role, member, trainable=False)
