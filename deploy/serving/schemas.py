"""Requests and answers, in the shapes that clients of OpenAI, Cohere and Jina send and expect."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Request(BaseModel):
    """Members that we do not know are passed over, as the services do whose clients these are."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

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


class ModelsAnswer(BaseModel):
    """`/v1/models`"""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Alive(BaseModel):
    """`/health`, `/ready`"""

    status: Literal["ok"] = "ok"
