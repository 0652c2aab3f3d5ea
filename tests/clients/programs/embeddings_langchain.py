"""langchain-openai and litellm: embeddings of a real model."""

from __future__ import annotations

import litellm
from checks import EMBEDDER, main, url
from langchain_openai import OpenAIEmbeddings

SENTENCES = ["The ferry leaves at six.", "A boat departs in the morning.", "Bread is old."]


def check_langchain_embeds_documents_and_queries() -> None:
    embeddings = OpenAIEmbeddings(
        base_url=f"{url()}/v1",
        api_key="none",  # type: ignore[arg-type]
        model=EMBEDDER,
        check_embedding_ctx_length=False,  # it would count with OpenAI's tokenizer
    )
    documents = embeddings.embed_documents(SENTENCES)
    assert [len(each) for each in documents] == [384] * 3
    assert embeddings.embed_query(SENTENCES[0]) == documents[0]


def check_litellm_embeds() -> None:
    made = litellm.embedding(
        model=f"openai/{EMBEDDER}",
        input=SENTENCES,
        api_base=f"{url()}/v1",
        api_key="none",
        encoding_format="float",
    )
    assert [len(each["embedding"]) for each in made.data] == [384] * 3
    assert made.usage.prompt_tokens > 10


if __name__ == "__main__":
    main()
