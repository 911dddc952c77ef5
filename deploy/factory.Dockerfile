# One image for factory, gateway, watchdog and the hyperfactory command; the service says which of them runs.
#   docker build -f deploy/factory.Dockerfile -t hyperfactory:0.1.0 .
# Pin the bases by digest in production: --build-arg PYTHON=python:…@sha256:… --build-arg TRAEFIK=traefik:…@sha256:…
ARG PYTHON=python:3.11.13-slim-bookworm
ARG TRAEFIK=traefik:v3.7.15

FROM ${TRAEFIK} AS traefik

FROM ${PYTHON} AS build
WORKDIR /src
RUN python -m venv /opt/hyperfactory
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY wire wire
COPY gen gen
COPY agent_runtime agent_runtime
COPY embedded embedded
COPY factory_cli factory_cli
COPY factory_server factory_server
COPY gateway gateway
COPY watchdog watchdog
# Bytecode goes into the image: its root is read-only later, and sandboxes start from it.
RUN /opt/hyperfactory/bin/pip install --no-cache-dir --constraint constraints.txt . \
 && /opt/hyperfactory/bin/python -m compileall -q /usr/local/lib/python3.11 /opt/hyperfactory || true

FROM ${PYTHON}
# The gateway starts Traefik itself: it writes what Traefik reads, and sees that Traefik took it in.
COPY --from=traefik /usr/local/bin/traefik /usr/local/bin/traefik
COPY --from=build /usr/local/lib/python3.11 /usr/local/lib/python3.11
COPY --from=build /opt/hyperfactory /opt/hyperfactory
RUN groupadd --gid 10001 hyperfactory \
 && useradd --uid 10001 --gid 10001 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin hyperfactory \
 && find / -xdev -perm /6000 -type f -exec chmod a-s {} +
ENV PATH=/opt/hyperfactory/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GRPC_ENABLE_FORK_SUPPORT=0 LANG=C.UTF-8 \
    TRAEFIK=/usr/local/bin/traefik
LABEL org.opencontainers.image.title="Hyper Agent Factory" org.opencontainers.image.licenses="Apache-2.0"
# The command line tools need no more than this user; compose.yaml says which service needs another, and why.
USER 10001:10001
WORKDIR /
CMD ["hyperfactory", "--help"]
