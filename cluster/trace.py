"""What an operator does with the trace's own users: add, change the password, let in or no more, list."""

from __future__ import annotations

from typing import Any

from cluster.data import EngineError
from deployments.identity_accounts import read_username
from deployments.identity_passwords import Passwords, check_password
from deployments.problems import ProblemError
from storage.identity import canonical_username
from storage.trace_users import TraceUsers


async def add_user(users: TraceUsers, name: str, password: str, *, length_min: int) -> dict[str, Any]:
    """Add a user.

    Raises:
        EngineError: the name is taken, or the name or the password cannot be one.
    """
    canonical, hashed = await _checked(name, password, length_min)
    if not await users.add(canonical, hashed):
        raise EngineError(f"the username {name} is taken")
    return {"username": canonical, "disabled": False}


async def set_password(users: TraceUsers, name: str, password: str, *, length_min: int) -> dict[str, Any]:
    """Change a password; within a second nobody comes in with the old one.

    Raises:
        EngineError: there is nobody of that name, or the password cannot be one.
    """
    canonical, hashed = await _checked(name, password, length_min)
    if not await users.change(canonical, password=hashed):
        raise EngineError(f"there is nobody named {name}")
    return {"username": canonical}


async def set_enabled(users: TraceUsers, name: str, *, enabled: bool) -> dict[str, Any]:
    """Let a user in again, or, within a second, no more.

    Raises:
        EngineError: there is nobody of that name.
    """
    canonical = canonical_username(name)
    if not await users.change(canonical, disabled=not enabled):
        raise EngineError(f"there is nobody named {name}")
    return {"username": canonical, "disabled": not enabled}


async def list_users(users: TraceUsers) -> list[dict[str, Any]]:
    """All users, by name."""
    return [{"username": user.name, "disabled": user.disabled} for user in await users.everyone()]


async def _checked(name: str, password: str, length_min: int) -> tuple[str, str]:
    passwords = Passwords()
    try:
        canonical = read_username(name)
        checked = check_password(password, username=canonical, name="", length_min=length_min)
        return canonical, await passwords.hash(checked)
    except ProblemError as error:
        raise EngineError(error.detail) from None
    finally:
        passwords.close()
