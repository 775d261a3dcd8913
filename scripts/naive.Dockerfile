# The control of scripts/benchmark_build.py: the same pins, installed over the network in one go
# on the same base, as a Dockerfile without a toolkit would do it.
ARG BASE
# hadolint ignore=DL3006
FROM ${BASE}
COPY requirements.txt ca.crt /tmp/
ENV PIP_CERT=/tmp/ca.crt
USER 0:0
RUN python -m pip install --no-cache-dir --no-deps --requirement /tmp/requirements.txt
USER 1000:0
