"""Bodies of the score service's calls."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from storage.notation import Instant

NAME_MAX: Final = 100
LINE_MAX: Final = 200
ASSETS_MAX: Final = 200
COUNT_MAX: Final = 1_000_000
PURPOSE_MAX: Final = 64
CONSENT_S_MAX: Final = 86_400

Day = Annotated[
    str,
    Meta(description="RFC 3339 full-date.", examples=["1987-04-21"], extra_json_schema={"format": "date"}),
]
Money = Annotated[int, Meta(ge=0, le=2**53 - 1, description="Centavos.", examples=[350_000])]
Count = Annotated[int, Meta(ge=0, le=COUNT_MAX, examples=[36])]
State = Annotated[str, Meta(description="Two capital letters.", pattern="^[A-Z]{2}$", examples=["SP"])]
IncomeSource = Literal["salary", "self-employment", "business", "pension", "rent", "benefit", "other", "none"]
AssetKind = Literal["real-estate", "vehicle", "investment", "account", "business", "other"]
Purpose = Annotated[
    str,
    Meta(description="What the data is for.", pattern="^[a-z0-9][a-z0-9-]{0,63}$", examples=["loan-application"]),
]


class Address(Struct, forbid_unknown_fields=True):
    """Where somebody lives, or a company sits."""

    street: Annotated[str, Meta(description="With the number; 1 to 200 characters.", examples=["Rua das Flores, 12"])]
    city: Annotated[str, Meta(description="1 to 200 characters.", examples=["São Paulo"])]
    state: State
    postal_code: Annotated[str, Meta(description="CEP.", pattern="^[0-9]{5}-?[0-9]{3}$", examples=["01310-100"])]


class Asset(Struct, forbid_unknown_fields=True):
    """Something owned."""

    kind: AssetKind
    value: Money


class CreditHistory(Struct, forbid_unknown_fields=True):
    """What has been seen of somebody's credit; the positive side alone. What is left out is 0."""

    first_credit_on: Annotated[Day | UnsetType, Meta(description="Day of the first credit; left out: none yet.")] = (
        UNSET
    )
    payments_on_time: Count | UnsetType = UNSET
    payments_late: Count | UnsetType = UNSET
    contracts_settled: Count | UnsetType = UNSET


class ProfileRequest(Struct, forbid_unknown_fields=True):
    """The whole profile; what is left out is not known."""

    name: Annotated[str, Meta(description="1 to 100 characters.", examples=["Ana Souza"])]
    birth_date: Day
    address: Address | UnsetType = UNSET
    income_source: IncomeSource | UnsetType = UNSET
    monthly_income: Money | UnsetType = UNSET
    assets: Annotated[list[Asset], Meta(description="At most 200.", max_length=ASSETS_MAX)] | UnsetType = UNSET
    credit: CreditHistory | UnsetType = UNSET


class ProfileAnswer(ProfileRequest, kw_only=True):
    """A profile."""

    updated_at: Instant


class FactorAnswer(Struct):
    """One factor of the score."""

    factor: Annotated[str, Meta(examples=["payments"])]
    points: Annotated[float, Meta(description="Of `weight`.", examples=[24.65])]
    weight: Annotated[int, Meta(examples=[29])]
    reason: Annotated[str, Meta(examples=["Nearly all of many payments came on time"])]


class ScoreAnswer(Struct):
    """A score with its reasons."""

    score: Annotated[int, Meta(ge=0, le=1000, examples=[742])]
    range: Literal["low", "regular", "good", "excellent"]
    default_rate: Annotated[float, Meta(description="Share of such people who default in a year.", examples=[0.06])]
    model: Annotated[str, Meta(description="Version of the scorecard.", examples=["razao-scorecard-1"])]
    factors: Annotated[list[FactorAnswer], Meta(description="What costs most comes first.")]
    debts_considered: Annotated[bool, Meta(description="False: they could not be had; see the documentation.")]
    computed_at: Instant
    updated_at: Annotated[Instant, Meta(description="When the profile was last written.")]


class LastQuery(Struct):
    """The newest query that was answered; all null when there was none."""

    at: Instant | None
    address: Annotated[str | None, Meta(description="Network address.", examples=["192.0.2.7"])]
    user: Annotated[str | None, Meta(description="The token's subject.", examples=["bank-17"])]


class AccessAnswer(Struct):
    """A query that was answered."""

    at: Instant
    address: Annotated[str, Meta(description="Network address.", examples=["192.0.2.7"])]
    user: Annotated[str, Meta(description="The token's subject.", examples=["bank-17"])]
    what: Annotated[str, Meta(examples=["score"])]
    purpose: str | None
    consent: Annotated[str | None, Meta(description="The consent that opened the profile.")]
    request_id: str


class Accesses(Struct):
    """Queries that were answered, the newest first."""

    items: list[AccessAnswer]
    next_cursor: str | None


class ConsentRequest(Struct, forbid_unknown_fields=True):
    """Lets somebody see the profile for a while."""

    grantee: Annotated[str, Meta(description="Subject of the tokens of whoever may; 1 to 255 characters.")]
    purpose: Purpose
    expires_in: Annotated[int, Meta(ge=1, le=CONSENT_S_MAX, description="Seconds.", examples=[3600])]


class ConsentAnswer(Struct):
    """A consent."""

    id: str
    grantee: str
    purpose: str
    made_at: Instant
    expires_at: Instant
    ended_at: Annotated[Instant | None, Meta(description="When it was ended before its time.")]


class ConsentList(Struct):
    """A person's consents, the newest first."""

    items: list[ConsentAnswer]
    next_cursor: None = None


class ModelAnswer(Struct):
    """The scorecard itself."""

    model: str
    factors: list[ModelFactor]


class ModelFactor(Struct):
    """One line of it."""

    factor: str
    weight: int
    asks: str
    bins: list[ModelBin]


class ModelBin(Struct):
    """One bin: what it means, and the share of the weight that it gives, in per cent."""

    reason: str
    share: int
