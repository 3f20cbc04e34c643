"""What is sent and what comes back, as pydantic models; the OpenAPI schema is made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)


def _encodable(text: str) -> str:
    """JSON can spell half a character (a lone surrogate), which is no text and which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("text that can be encoded in UTF-8") from error
    return text


def _in_one_sentence(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Of a union pydantic would say for each member apart what is wrong, under names of its own."""
    try:
        return check(value)
    except ValidationError as error:
        raise ValueError("a whole number from 0 on, or 'auto'") from error


Text = Annotated[str, AfterValidator(_encodable)]
AskedDraws = Annotated[Annotated[int, Field(ge=0)] | Literal["auto"], WrapValidator(_in_one_sentence)]


class Strict(BaseModel):
    """No field beside those that are named, and no text where a number belongs."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ItemRequest(Strict):
    """A multiple-choice question, or a text and its classes."""

    id: Text | None = Field(None, max_length=256, description="Name of the item; default: `item-` and its index.")
    question: Text = Field(description="The question, or the text to classify.")
    choices: list[Text] | None = Field(
        None,
        description="Two or more texts that differ. May be left out where the run has choices of its own for all items "
        "(`choices` of /v1/model).",
    )


class PredictRequest(Strict):
    """Items to predict."""

    items: list[ItemRequest] = Field(min_length=1, description="Items, at most `limits.max_items` of /v1/model.")
    num_samples: AskedDraws | None = Field(
        None,
        description="Posterior draws; default: the server's; 0: the posterior mean; auto: until an item's answer "
        "is settled.",
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="Seed of the draws; default: the run's.")


class Record(BaseModel):
    """Prediction of one item: the fields of a line that `bayeslora predict` writes."""

    id: str = Field(description="Name of the item.")
    probabilities: list[float] = Field(description="Of its choices, in their order; mean over the draws.")
    prediction: int = Field(description="Index of the most probable choice, from 0.")
    choice: str = Field(description="Text of the most probable choice.")
    confidence: float = Field(description="Probability of that choice.")
    entropy: float = Field(description="Entropy of the probabilities, nats: total uncertainty.")
    mutual_information: float = Field(description="Disagreement of the draws, nats: epistemic uncertainty.")
    variance: float | None = Field(None, description="Of the utilities of a head on frozen features, nats squared.")
    novelty: float | None = Field(
        None, description="How far a head's training questions are, as a quantile of their own distances."
    )
    num_samples: int | None = Field(None, description="Draws of this item, where the request or server says auto.")
    abstain: bool | None = Field(None, description="Whether the entropy is above the server's `abstain_above`, if any.")
    set: list[int] | None = Field(None, description="Indices of the prediction set, if the server has a `coverage`.")
    set_choices: list[str] | None = Field(None, description="Texts of the prediction set.")


class PredictResponse(BaseModel):
    """Predictions of a request."""

    predictions: list[Record] = Field(description="One for each item, in the request's order.")
    num_samples: int | Literal["auto"] = Field(
        description="Posterior draws that were used; 0: a point estimate; auto: as each record says."
    )
    seed: int = Field(description="Seed of the draws.")


class ModelResponse(BaseModel):
    """What the server serves."""

    run: str = Field(description="Folder or Hub id of the run.")
    method: str
    base_model: str
    task: str
    scoring: str = Field(description="How the choices are scored: cloze, letter, options or classification.")
    choices: list[str] | None = Field(description="Those of all items, where the run has them.")
    classes: int | None = Field(description="Number of classes of the classification head.")
    num_samples: int | Literal["auto"] = Field(
        description="Posterior draws where a request does not say; 0: a point estimate; auto: as many as an item needs."
    )
    seed: int = Field(description="Seed of the draws where a request does not say.")
    temperature: float = Field(
        description="Divides the log-probabilities, of a Gaussian over scores its mean; fitted on dev."
    )
    abstain_above: float | None = Field(description="Entropy above which an item says abstain, nats.")
    coverage: float | None = Field(description="Probability with which a prediction set holds the right choice.")
    metrics: dict[str, Any] = Field(description="Scores from the run's metrics.json, with their split.")
    limits: dict[str, int | float] = Field(description="What a request may ask for; timeout in seconds.")


class Error(BaseModel):
    """Why a request was refused."""

    status: int = Field(description="HTTP status.")
    code: str = Field(description="Name of the reason, for programs.")
    message: str = Field(description="What was expected, what came, and the remedy.")
    field: str | None = Field(None, description="Where in the body, such as `items[0].choices`.")
    id: str | None = Field(None, description="Of a failure (500): stands in the server's log.")


class ErrorResponse(BaseModel):
    """Every answer that is not 200, except 400 for a wrong Host header."""

    error: Error
