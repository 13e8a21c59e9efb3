# The locked CPU environment, by the Makefile's own steps: docker build -f docker/cpu.Dockerfile -t opid:cpu .
FROM python:3.12-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opid
COPY . .
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN make install VENV=/opt/opid TORCH_INDEX="$TORCH_INDEX"
ENV PATH=/opt/opid/bin:$PATH
# What a campaign writes; mount a volume here.
WORKDIR /work
RUN useradd --create-home --uid 10001 opid && chown opid /work
USER 10001
ENTRYPOINT ["opid"]
CMD ["--help"]
