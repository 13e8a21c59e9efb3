# vLLM's CUDA build with its PyTorch, unlocked, by the Makefile's own steps: docker build -f docker/gpu.Dockerfile -t opid:gpu .
# DeepSpeed compiles its fused optimizer at the first start, so this needs the CUDA compiler, not only its libraries.
FROM nvidia/cuda:12.9.1-devel-ubuntu24.04
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opid
COPY . .
RUN PIP_NO_CACHE_DIR=1 make install-gpu GPU_VENV=/opt/opid
ENV PATH=/opt/opid/bin:$PATH
WORKDIR /work
RUN useradd --create-home --uid 10001 opid && chown opid /work
USER 10001
ENTRYPOINT ["opid"]
CMD ["--help"]
