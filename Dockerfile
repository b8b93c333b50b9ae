# The environment, without the project, which is mounted:
#   docker build -t lottery .
#   docker run --rm --user "$(id -u):$(id -g)" --env HOME=/tmp --volume "$PWD:/project" lottery
FROM python:3.12-slim AS packages
RUN python -m venv /opt/venv
COPY requirements.txt .
RUN /opt/venv/bin/pip install --no-cache-dir --require-hashes -r requirements.txt

FROM python:3.12-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home lottery
COPY --from=packages /opt/venv /opt/venv
# What was computed and downloaded stays beside the project; git ignores it.
ENV PATH=/opt/venv/bin:$PATH LOTTERY_CACHE=/project/.runs
USER lottery
WORKDIR /project
CMD ["dvc", "repro"]
