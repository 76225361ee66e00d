# syntax=docker/dockerfile:1
# The digest of the base image, for a build that always begins with the same bytes. This command prints it:
#   docker buildx imagetools inspect python:3.11-slim --format '{{.Manifest.Digest}}'
# docker build --build-arg PYTHON_DIGEST=sha256:… .
ARG PYTHON_DIGEST=""

FROM python:3.11-slim${PYTHON_DIGEST:+@${PYTHON_DIGEST}} AS build
WORKDIR /src
COPY config/requirements-image.txt config/requirements-build.txt config/
# Each package has to have the hash that the repository names. The image has no pip.
RUN python -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --require-hashes -r config/requirements-build.txt
RUN python -m venv --without-pip /opt/bcs \
 && /opt/build/bin/pip --python /opt/bcs/bin/python install --no-cache-dir --require-hashes -r config/requirements-image.txt
COPY pyproject.toml README.md ./
COPY bcs ./bcs
COPY config ./config
RUN /opt/build/bin/python -m hatchling build -t wheel -d /dist \
 && /opt/build/bin/pip --python /opt/bcs/bin/python install --no-cache-dir --no-deps --no-index /dist/*.whl

FROM python:3.11-slim${PYTHON_DIGEST:+@${PYTHON_DIGEST}}
COPY --from=build /opt/bcs /opt/bcs
ENV PATH=/opt/bcs/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BCS_ENVIRONMENT=production
# A number, because Kubernetes can't tell for a name whether it is root (`runAsNonRoot`). BCS writes no file.
USER 10001:10001
EXPOSE 4002
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s CMD ["bcs", "healthcheck"]
# exec form: no shell, and the process gets SIGTERM itself, and stops in order.
ENTRYPOINT ["bcs"]
CMD ["serve"]
