# The control of scripts/benchmark_build.py: the same pins, installed over the network in one go.
ARG BASE
# hadolint ignore=DL3006
FROM ${BASE}
COPY requirements.txt pip.conf ca.crt /tmp/
ENV PIP_CONFIG_FILE=/tmp/pip.conf PIP_CERT=/tmp/ca.crt
# hadolint ignore=DL3042
RUN python3 -m venv --without-pip /opt/naive \
    && PYTHONPATH=/tmp/pip python3 -m pip --python /opt/naive/bin/python install \
        --no-cache-dir --requirement /tmp/requirements.txt
