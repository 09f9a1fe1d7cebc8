# tidegate's images, all from this file; `make image` builds one (docs/deploy.md).
#   docker build --target cpu -t tidegate:cpu .            gpu | monitor | exporter likewise
# What is installed is what constraints.txt pins. The runtime images have no compiler, no pip and no exporter, run as user 10001 with
# nothing but the repository to read, and need no writable root. A private package index: --secret id=pip,src=pip.conf.
#
# gpu: CUDA 13, cuDNN and TensorRT 10 come as Python packages, at the versions that fit the pinned onnxruntime-gpu, so the base needs none of
# them; the driver comes from the node (NVIDIA container toolkit, driver 580 or newer).
ARG PYTHON_IMAGE=python:3.11-slim
ARG GPU_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE tidegate.py ./
COPY server server
COPY exporters exporters
COPY monitor monitor
COPY loadtests loadtests
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    python3 -m venv /build && \
    /build/bin/pip install --no-cache-dir --quiet --constraint constraints.txt hatchling && \
    /build/bin/pip wheel --no-cache-dir --quiet --no-deps --no-build-isolation --wheel-dir /dist .

# One environment for each image. pip leaves once its work is done: a runtime installs nothing.
FROM wheel AS cpu-packages
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    python3 -m venv /opt/tidegate && \
    /opt/tidegate/bin/pip install --no-cache-dir --quiet --constraint constraints.txt "$(echo /dist/*.whl)[cpu,redis]" && \
    /opt/tidegate/bin/pip uninstall --yes --quiet setuptools pip

FROM wheel AS monitor-packages
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    python3 -m venv /opt/tidegate && \
    /opt/tidegate/bin/pip install --no-cache-dir --quiet --constraint constraints.txt "$(echo /dist/*.whl)[monitor]" && \
    /opt/tidegate/bin/pip uninstall --yes --quiet setuptools pip

FROM ${GPU_IMAGE} AS gpu-packages
COPY --from=wheel /dist /dist
COPY constraints.txt /src/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    python3 -m venv /opt/tidegate && \
    /opt/tidegate/bin/pip install --no-cache-dir --quiet --constraint /src/constraints.txt "$(echo /dist/*.whl)[gpu,redis]" && \
    /opt/tidegate/bin/pip uninstall --yes --quiet setuptools pip

FROM ${GPU_IMAGE} AS exporter-packages
COPY --from=wheel /dist /dist
COPY constraints.txt /src/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    python3 -m venv /opt/tidegate && \
    /opt/tidegate/bin/pip install --no-cache-dir --quiet --constraint /src/constraints.txt "$(echo /dist/*.whl)[gpu,export]" && \
    /opt/tidegate/bin/pip uninstall --yes --quiet setuptools pip

# What all images have in common: the user, and no writable place. Numbers, so that Kubernetes can check runAsNonRoot.
FROM ${PYTHON_IMAGE} AS base
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tidegate" \
      org.opencontainers.image.description="Production inference server: dynamic batching by deadline, Open Inference Protocol" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/tidegate/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
STOPSIGNAL SIGTERM
USER 10001:10001
WORKDIR /
ENTRYPOINT ["tidegate"]

FROM ${GPU_IMAGE} AS gpu-base
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tidegate" \
      org.opencontainers.image.description="Production inference server: dynamic batching by deadline, Open Inference Protocol" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/tidegate/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
STOPSIGNAL SIGTERM
USER 10001:10001
WORKDIR /
ENTRYPOINT ["tidegate"]

FROM base AS monitor
COPY --from=monitor-packages /opt/tidegate /opt/tidegate
EXPOSE 9099
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9099/health', timeout=4)"]
CMD ["monitor", "run", "/etc/tidegate/monitor.yaml"]

# Builds engines on the node's GPU and exports models; it serves nothing, so there is no health to ask.
FROM gpu-base AS exporter
HEALTHCHECK NONE
COPY --from=exporter-packages /opt/tidegate /opt/tidegate
CMD ["export", "--help"]

FROM gpu-base AS gpu
COPY --from=gpu-packages /opt/tidegate /opt/tidegate
ENV TIDEGATE_HOST=0.0.0.0 TIDEGATE_REPOSITORY=/models TIDEGATE_LANES_DEVICE=cuda:0
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8002/v2/health/live', timeout=4)"]
CMD ["serve"]

# The last target is the one that is built where none is named.
FROM base AS cpu
COPY --from=cpu-packages /opt/tidegate /opt/tidegate
ENV TIDEGATE_HOST=0.0.0.0 TIDEGATE_REPOSITORY=/models
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python3", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8002/v2/health/live', timeout=4)"]
CMD ["serve"]
