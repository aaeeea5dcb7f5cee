# The daemon alone: one static binary, the certificates that it trusts and a folder for the buffer. Nothing else, no shell.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -tags timetzdata -ldflags "-s -w -X main.version=$VERSION" -o /out/cdcsync ./cmd/cdcsync \
 && mkdir -p /out/data /out/tmp && chmod 1777 /out/tmp

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/cdcsync /usr/local/bin/cdcsync
COPY --from=build /out/tmp /tmp
COPY --from=build --chown=65532:65532 /out/data /var/lib/cdcsync
# Numbers, because there is no passwd here, and because an orchestrator can check them.
USER 65532:65532
# buffer.dir is relative to it: ./cdcsync-data lies in the volume.
WORKDIR /var/lib/cdcsync
VOLUME /var/lib/cdcsync
ENV PATH=/usr/local/bin
EXPOSE 8484
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["cdcsync", "status", "--check", "--config", "/etc/cdcsync/config.yaml"]
ENTRYPOINT ["cdcsync"]
CMD ["run", "--config", "/etc/cdcsync/config.yaml"]
