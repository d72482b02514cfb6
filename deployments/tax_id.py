"""Brazil's tax ids as clients write them: CPF and CNPJ, with their check digits."""

from __future__ import annotations

import re
from typing import Final

from validate_docbr import CNPJ, CPF

from deployments.json_body import text
from deployments.problems import INVALID_TAX_ID, ProblemError

_CPF: Final = re.compile(r"[0-9]{11}|[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", re.ASCII)
_CNPJ: Final = re.compile(
    r"[0-9A-Za-z]{12}[0-9]{2}|[0-9A-Za-z]{2}\.[0-9A-Za-z]{3}\.[0-9A-Za-z]{3}/[0-9A-Za-z]{4}-[0-9]{2}", re.ASCII
)
_CPF_STRICT: Final = CPF()
_CPF_REPEATED: Final = CPF(repeated_digits=True)
_CNPJ_CHECK: Final = CNPJ()


def read_tax_id(given: str, field: str, *, repeated: bool) -> str:
    """The digits and capital letters of a CPF or CNPJ (domain: Receita Federal; alphanumeric CNPJ since July 2026).

    Args:
        given: with or without punctuation.
        field: where it stands, for the problem.
        repeated: accept CPFs of one repeated digit.

    Raises:
        ProblemError: not a valid one.
    """
    plain = re.sub(r"[./-]", "", given).upper()
    cpf = _CPF_REPEATED if repeated else _CPF_STRICT
    if (_CPF.fullmatch(given) and cpf.validate(plain)) or (_CNPJ.fullmatch(given) and _CNPJ_CHECK.validate(plain)):
        return plain
    text(given, field, 255)
    raise ProblemError(INVALID_TAX_ID, "This is neither a CPF nor a CNPJ", field=field)
