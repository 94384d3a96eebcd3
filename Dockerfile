# The image of every service and of the command `saga`. Which one runs is the command's to say:
#
#   docker build -t order-saga:0.1.0 .
#   docker run --rm order-saga:0.1.0 saga --help
#
# It runs as user 10001, needs no writable file but what is below /data and /audit, and is told
# secrets by files in SECRETS_DIR (see compose.yaml). Another base needs Python 3.11 or later, with
# the module venv.
ARG BASE=docker.io/library/python:3.13.7-slim-trixie

FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
RUN python3 -m venv /opt/saga
WORKDIR /src
COPY requirements.lock requirements-dev.lock ./
RUN /opt/saga/bin/pip install --require-hashes --requirement requirements.lock
# What builds the project is pinned among the tools of development.
RUN awk '/^(setuptools|wheel|packaging)==/ { on = 1 } on { print } on && !/\\$/ { on = 0 }' \
        requirements-dev.lock > build.lock \
    && python3 -m venv /opt/build && /opt/build/bin/pip install --require-hashes --requirement build.lock
COPY . .
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/saga/bin/pip install --no-deps --no-index /wheels/*.whl \
    && mkdir /opt/saga/app && cp -r common order_saga *_service /opt/saga/app

FROM ${BASE}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin saga \
    && install --directory --owner saga --group saga /data /audit
COPY --from=build /opt/saga /opt/saga
ENV PATH=/opt/saga/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    PYTHONPATH=/opt/saga/app SAGA=order_saga:SAGA DATA_DIR=/data HTTP_HOST=0.0.0.0 HTTP_PORT=8000
USER 10001:10001
WORKDIR /data
# Alive, not ready: some supervisors restart what is not healthy, and a broker that is away is no
# reason for that. `compose.yaml`, where services wait for each other, asks whether they are ready.
HEALTHCHECK --interval=10s --timeout=30s --retries=12 --start-period=300s CMD ["python3", "-m", "saga.runtime.healthcheck", "/livez"]
CMD ["saga", "--help"]
