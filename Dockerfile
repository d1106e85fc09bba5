# For those who build with a container engine. `make image` needs none, adds the
# list of modules and labels, and gives the same bytes each time. Both hold the
# static binary and the CA certificates: no shell, no libc, no package manager.
#
#   docker build --build-arg VERSION="$(git describe --tags --always)" .

FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
ARG TARGETOS TARGETARCH
ARG VERSION=devel
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY provider provider
COPY internal internal
COPY cmd cmd
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /tenure ./cmd/tenure

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /tenure /tenure
# uid 0, because the pods' volumes belong to root and the driver's socket
# directory too. It needs no capability for that: drop ALL, and add CHOWN and
# FOWNER only where objects set an owner.
USER 0:0
# For "kubectl exec … -- tenure status".
ENV PATH=/
ENTRYPOINT ["/tenure"]
CMD ["serve"]
