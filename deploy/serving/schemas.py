"""Requests and answers, in the shapes that clients of OpenAI, Cohere and Jina send and expect."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Request(BaseModel):
    """Members that we do not know are passed over, as the services do whose clients these are."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)

    model: str = Field("", max_length=256, description="a name of /v1/models; may be left out where there is just one")


class ImageUrl(BaseModel):
    """Where a picture is."""

    url: str


class InputAudio(BaseModel):
    """An encoded sound."""

    data: str
    format: str = ""


class TextPart(BaseModel):
    """A part of a fused item: text."""

    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """A part of a fused item: a picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class AudioPart(BaseModel):
    """A part of a fused item: a sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class ContentItem(BaseModel):
    """Several modalities that make one vector."""

    model_config = ConfigDict(extra="forbid")

    content: Annotated[list[Part], Field(min_length=1)]


class ModalItem(BaseModel):
    """Text, a picture, a sound (base64 or a data: URI), or several of these fused to one vector."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = None
    image: str | None = None
    audio: str | None = None


TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
InputItem = str | ModalItem | ContentItem
_Items = Annotated[list[InputItem], Field(min_length=1)]
Input = str | TokenIds | Annotated[list[TokenIds], Field(min_length=1)] | _Items


class EmbeddingsRequest(_Request):
    """`/v1/embeddings`"""

    input: Input
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="the first so many components, scaled to length 1")
    user: str | None = None


class Usage(BaseModel):
    """Tokens of all texts of the request."""

    prompt_tokens: int
    total_tokens: int


class Embedding(BaseModel):
    """One vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(BaseModel):
    """`/v1/embeddings`"""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


class CohereInput(BaseModel):
    """One item of `/v2/embed`."""

    content: Annotated[list[Part], Field(min_length=1)]


class CohereRequest(_Request):
    """`/v2/embed`: texts, images (data: URIs), or inputs of several parts."""

    texts: list[str] | None = None
    images: list[str] | None = None
    inputs: list[CohereInput] | None = None
    input_type: str | None = None
    embedding_types: list[Literal["float", "base64"]] = ["float"]
    output_dimension: int | None = Field(None, ge=1)


class CohereAnswer(BaseModel):
    """`/v2/embed`"""

    id: str
    embeddings: dict[str, list[Any]]
    texts: list[str] = []
    meta: dict[str, Any]
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"


class RerankRequest(_Request):
    """`/v1/rerank`: by the cosine of the query to each document."""

    query: InputItem
    documents: _Items
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False


class Ranked(BaseModel):
    """A document, and how near the query it is."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class RerankAnswer(BaseModel):
    """`/v1/rerank`: the nearest first."""

    id: str
    model: str
    results: list[Ranked]
    usage: Usage


class ClassifyRequest(_Request):
    """`/v1/classify`"""

    input: InputItem | _Items
    task: str | None = Field(None, description="of the model; may be left out where it has just one that classifies")
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2)] | None = Field(
        None, description="texts to choose among, whatever the model was trained to tell apart (zero-shot)"
    )
    top_k: int | None = Field(None, ge=1, description="the likeliest labels, with their probabilities, in `top`")


class Classified(BaseModel):
    """The likeliest class of an item; `label` is null where the model refuses it as out of scope."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int
    out_of_scope: bool = False
    top: list[dict[str, Any]] | None = None


class ClassifyAnswer(BaseModel):
    """`/v1/classify`: `probs` are in the order of the task's `labels` in /v1/models."""

    id: str
    object: Literal["list"] = "list"
    model: str
    data: list[Classified]
    usage: Usage


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    include_usage: bool = False


class ChatRequest(_Request):
    """`/v1/chat/completions`"""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    task: str | None = Field(None, description="of the model; may be left out where just one of its tasks writes texts")
    max_tokens: int | None = Field(None, ge=1, description="at most the model's own limit, which is the default")
    max_completion_tokens: int | None = Field(None, ge=1, description="as max_tokens")
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default, takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="repeats an answer")
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None


class TextUsage(Usage):
    """Tokens read and written."""

    completion_tokens: int


class Answered(BaseModel):
    """The text of an answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """An answer, and why it ended: it was over (`stop`), or as long as it may be (`length`)."""

    index: int = 0
    message: Answered
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    """`/v1/chat/completions`; streamed, `chat.completion.chunk` events of the same shape with `delta` for `message`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: TextUsage


class TranslateRequest(_Request):
    """`/v1/translate`"""

    input: str | Annotated[list[str], Field(min_length=1)]
    task: str | None = Field(None, description="of the model; may be left out where just one of its tasks writes texts")
    beams: int | None = Field(
        None, ge=1, le=16, description="of the search for the likeliest text; default: the model's"
    )
    max_tokens: int | None = Field(None, ge=1, description="of each text, at most the model's own limit")


class Translated(BaseModel):
    """One text."""

    index: int
    text: str


class TranslateAnswer(BaseModel):
    """`/v1/translate`"""

    id: str
    object: Literal["list"] = "list"
    model: str
    data: list[Translated]
    usage: Usage


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["mmbm"] = "mmbm"
    modalities: list[str]
    dimensions: dict[str, int]
    shared_space: bool
    fingerprints: dict[str, str]
    tasks: dict[str, Any]
    update_error: str = ""


class ModelsAnswer(BaseModel):
    """`/v1/models`"""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Alive(BaseModel):
    """`/health`, `/ready`"""

    status: Literal["ok"] = "ok"
