# invalidator as an image: `make image`, or `docker build -t invalidator .`
#
# What is installed is pinned by hash in requirements/*.txt and comes as wheels only, so that no architecture needs a
# compiler: one without wheels fails to build, and says of which package. To pin the base too, give its digest:
# --build-arg BASE=python:3.13-slim-trixie@sha256:...
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ONLY_BINARY=:all:
WORKDIR /source
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/invalidator
COPY requirements/build.txt requirements/image.txt requirements/
RUN /build/bin/pip install --require-hashes -r requirements/build.txt \
    && /build/bin/pip --python /opt/invalidator/bin/python install --no-compile --require-hashes -r requirements/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY invalidator invalidator
# From a wheel by name, not from a path: pip would note where it was.
RUN /build/bin/python -m hatchling build -t wheel -d /wheel \
    && /build/bin/pip --python /opt/invalidator/bin/python install --no-compile --no-deps --no-index --find-links /wheel invalidator \
    && find /opt/invalidator -type d -name tests -prune -exec rm -r {} + \
    && /opt/invalidator/bin/python -m compileall -q -f --invalidation-mode unchecked-hash /opt/invalidator/lib

FROM ${BASE}
ARG VERSION=""
LABEL org.opencontainers.image.title="invalidator" \
      org.opencontainers.image.description="Keeps caches right over PostgreSQL: hears every committed change and evicts the cache keys it maps to." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /opt/invalidator /opt/invalidator
ENV PATH=/opt/invalidator/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
EXPOSE 9911 9912
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s CMD ["invalidator", "health", "--started"]
ENTRYPOINT ["invalidator"]
CMD ["run"]
