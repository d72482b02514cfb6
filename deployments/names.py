"""Names that people are shown: one form for each, and few that look like another without being it.

Who pays looks at a name before they do. So a name has no character that turns the direction of writing round (a payee
could end in another one's name) or that nobody sees, and is kept in the one form in which Unicode composes it (NFC). A
username, which stands for somebody alone, is written in one script besides (UTS 39, 5.2: single script, where Japanese,
Korean and Chinese count as one each): a Cyrillic letter among Latin ones would make it somebody else's.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from deployments.json_body import text
from deployments.problems import malformed

# Default_Ignorable_Code_Point beyond general category Cf, and the blank pattern of Braille.
_BLANK: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
_UNSEEN: Final = frozenset({"Cf", "Zl", "Zp", "Co", "Cn", "Cs"})
_EAST_ASIAN: Final = (
    frozenset({"CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA"}),
    frozenset({"CJK", "IDEOGRAPHIC", "HANGUL"}),
    frozenset({"CJK", "IDEOGRAPHIC", "BOPOMOFO"}),
)


def read_name(given: str, field: str, length_max: int) -> str:
    """A name in NFC, without space around it.

    Raises:
        ProblemError: it has less than one or more than `length_max` characters, as it is given or in that form, or one
            that it may not have.
    """
    name = text(unicodedata.normalize("NFC", text(given, field, length_max).strip()), field, length_max)
    _refuse_unseen(name, field)
    return name


def refuse_confusable(username: str, field: str) -> None:
    """Raises ProblemError for a new username, in its canonical form, that can be taken for another one."""
    _refuse_unseen(username, field)
    scripts = {_script(one) for one in username if one.isalnum() and not one.isascii()}
    if any(one.isascii() and one.isalpha() for one in username):
        scripts.add("LATIN")
    if len(scripts) > 1 and not any(scripts <= together for together in _EAST_ASIAN):
        raise malformed(field, "The letters and digits of a username are all of one script")


def _refuse_unseen(name: str, field: str) -> None:
    if name.isascii():
        return
    for one in name:
        category = unicodedata.category(one)
        if category in _UNSEEN or (category == "Zs" and one != " ") or _BLANK.match(one):
            raise malformed(
                field,
                f"This must not contain U+{ord(one):04X}: characters that cannot be seen or that turn the direction "
                "of writing round have no place in a name",
            )


def _script(letter: str) -> str:
    """Its script, by the first word of its name: Python's tables have no other trace of it."""
    return re.split("[ -]", unicodedata.name(letter, "UNKNOWN"))[0]
