package aws

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/tenure-csi/tenure/internal/gate"
	"github.com/tenure-csi/tenure/internal/lease"
	"github.com/tenure-csi/tenure/provider"
)

// DefaultAgent is where EKS Pod Identity's agent listens on a node, for IPv4; see
// "Considerations" of EKS Pod Identity in the EKS user guide.
const DefaultAgent = "http://169.254.170.23/v1/credentials"

const (
	callTimeout = 10 * time.Second // of one call, once it has room to be sent
	dialTimeout = 5 * time.Second  // for TCP, and again for TLS
	idleTimeout = 30 * time.Second
	maxBody     = 1 << 20 // of an answer; STS's are a few KiB
)

// Config is what the daemon's operator says. The zero value works in every region
// that an SPC names, with the pods' own identities.
type Config struct {
	Region      string                  // for reads that name none; empty: those that need one are refused
	STSEndpoint string                  // URL of STS whatever the region, as of a VPC endpoint; empty: AWS's own for the region
	FIPS        bool                    // whether AWS's FIPS endpoints are asked; not with STSEndpoint
	Agent       string                  // URL of EKS Pod Identity's agent; empty: DefaultAgent
	Cluster     string                  // goes into the names of sessions; empty: nothing does
	Node        aws.CredentialsProvider // the daemon's own credentials, kept until shortly before their end; nil: no read gets them

	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: metrics are counted and not shown
}

// Source is a lease.Source for AWS. Make it with New; its methods may be called at
// once.
type Source struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	gates   gate.Gates
	http    *http.Client
}

var _ lease.Source = (*Source)(nil)

// clusterName is what EKS allows, which is also fit for the name of a session.
var clusterName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$`)

// New checks the configuration and returns a Source. It connects to nothing. The
// error says which setting is wrong.
func New(cfg Config) (*Source, error) {
	cfg.Agent = cmp.Or(cfg.Agent, DefaultAgent)
	switch {
	case cfg.Region != "" && !provider.IsRegion(cfg.Region):
		return nil, fmt.Errorf("reading the AWS region: %q is none; write it like eu-central-1", cfg.Region)
	case cfg.Cluster != "" && !clusterName.MatchString(cfg.Cluster):
		return nil, fmt.Errorf("reading the cluster's name: %q is none; use up to 100 letters, digits, - and _", cfg.Cluster)
	case cfg.FIPS && cfg.STSEndpoint != "":
		return nil, fmt.Errorf("reading the address of STS: %s can't be combined with AWS's own FIPS endpoints; choose one", cfg.STSEndpoint)
	}
	for what, address := range map[string]string{"STS": cfg.STSEndpoint, "the EKS Pod Identity agent": cfg.Agent} {
		if err := checkURL(address); address != "" && err != nil {
			return nil, fmt.Errorf("reading the address of %s: %w", what, err)
		}
	}
	if cfg.Node != nil {
		cfg.Node = aws.NewCredentialsCache(cfg.Node)
	}
	s := &Source{cfg: cfg, log: cfg.Logger, http: newClient()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var err error
	s.metrics, err = newMetrics(cfg.Registerer)
	return s, err
}

// checkURL takes TLS, and plain HTTP to the node itself: the pods' tokens are sent
// there.
func checkURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q is no plain URL; write it like https://sts.example.com", text)
	case u.Scheme == "https":
		return nil
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if u.Scheme != "http" || err != nil || !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && ip != agentIPv6 {
		return fmt.Errorf("%q would send the pods' tokens without TLS; begin it with https://", text)
	}
	return nil
}

// agentIPv6 is the agent's address on nodes with IPv6.
var agentIPv6 = netip.MustParseAddr("fd00:ec2::23")

// Close drops idle connections. It waits for nothing: every call of a Source runs
// in its caller, who must have returned from them first.
func (s *Source) Close() { s.http.CloseIdleConnections() }

// newClient makes a client that follows no redirect, uses no proxy and reads no
// endless answer.
func newClient() *http.Client {
	return &http.Client{
		Transport: limited{&http.Transport{
			DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    dialTimeout,
			MaxIdleConnsPerHost:    gate.Slots,
			IdleConnTimeout:        idleTimeout,
			MaxResponseHeaderBytes: 64 << 10,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// limited cuts answers off at maxBody, since the SDK reads them whole.
type limited struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxBody), resp.Body}
	return resp, nil
}
