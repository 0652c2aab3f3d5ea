# A server of language models: docker build -t ockham . ; docs/operating.md says how it is run.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/ockham
WORKDIR /src
COPY constraints.txt pyproject.toml ./
# What changes seldom first, so that a change of the source fetches nothing anew.
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && /opt/ockham/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY csrc csrc
COPY ockham ockham
RUN /opt/ockham/bin/pip install --no-cache-dir --no-deps . \
    && /opt/ockham/bin/python -P -c 'import ockham.kernels._cpu' \
    && /opt/ockham/bin/pip uninstall --yes --quiet pip setuptools

FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libstdc++6 python3 tini \
    && apt-get clean && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /cache --shell /usr/sbin/nologin ockham \
    && install --directory --owner ockham --group ockham --mode 700 /cache
COPY --from=build /opt/ockham /opt/ockham
ENV PATH=/opt/ockham/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    OCKHAM_HOST=0.0.0.0 \
    OCKHAM_PORT=8000 \
    OCKHAM_CACHE=/cache/ockham \
    HF_HOME=/cache/huggingface
USER 10001:10001
WORKDIR /cache
VOLUME /cache
EXPOSE 8000
# Healthy once a model is loaded. What ends a container sends SIGTERM: running requests may finish.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"OCKHAM_PORT\"]}/health', timeout=4)"]
# tini takes SIGTERM also while a model is loaded, and buries what an engine leaves behind.
ENTRYPOINT ["tini", "--", "ockham"]
CMD ["serve"]
