# syntax=docker/dockerfile:1
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY bcs ./bcs
COPY config ./config
RUN python -m venv /opt/bcs && /opt/bcs/bin/pip install --no-cache-dir -c constraints.txt '.[postgres]'

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home bcs
COPY --from=build /opt/bcs /opt/bcs
ENV PATH=/opt/bcs/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BCS_ENVIRONMENT=production
USER bcs
EXPOSE 4002
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s CMD ["bcs", "healthcheck"]
# exec form: the process gets SIGTERM itself, and stops in order.
ENTRYPOINT ["bcs"]
CMD ["serve"]
