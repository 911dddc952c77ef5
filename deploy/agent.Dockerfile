# The agents' image where a registry is reachable; `make agent-image` builds the same without one.
#   docker build -f deploy/agent.Dockerfile -t hyperfactory-agent:python .
# Pin the base by digest in production: --build-arg BASE=python:3.11-slim-bookworm@sha256:…
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
COPY deploy/agent-requirements.txt constraints.txt /tmp/
RUN pip install --no-cache-dir --no-compile --target /app/site \
      --requirement /tmp/agent-requirements.txt --constraint /tmp/constraints.txt \
 && rm -rf /app/site/bin
COPY agent_runtime /app/src/agent_runtime
COPY wire /app/src/wire
COPY gen/hyperfactory /app/src/hyperfactory
COPY gen/buf /app/src/buf
# Without its bytecode an interpreter starts three times slower, and its root is read-only.
RUN python -m compileall -q --invalidation-mode unchecked-hash /usr/local/lib/python3.11 /app || true

FROM ${BASE}
COPY --from=build /usr/local/lib/python3.11 /usr/local/lib/python3.11
COPY --from=build /app /app
RUN groupadd --gid 10001 agent && useradd --uid 10001 --gid 10001 --home-dir /workspace --no-create-home agent \
 && mkdir -p /workspace /skills /run/hf/own /run/hf/peers \
 && rm -rf /var/lib/* /var/cache/* /var/log/* \
 && find / -xdev -perm /6000 -exec chmod a-s {} +
ENV PATH=/usr/local/bin:/usr/bin:/bin PYTHONPATH=/app/src:/app/site PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 HOME=/workspace TMPDIR=/tmp LANG=C.UTF-8 GRPC_ENABLE_FORK_SUPPORT=0
LABEL hyperfactory.base=python
USER 10001:10001
WORKDIR /workspace
CMD ["python", "-m", "agent_runtime", "--own", "/run/hf/own", "--peers", "/run/hf/peers", "--workspace", "/workspace"]
