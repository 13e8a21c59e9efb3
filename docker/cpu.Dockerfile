# The locked CPU environment, by the Makefile's own steps: docker build -f docker/cpu.Dockerfile -t opid:cpu .
FROM python:3.12-slim
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
RUN useradd --create-home opid && chown opid /work
USER opid
ENTRYPOINT ["opid"]
CMD ["--help"]
