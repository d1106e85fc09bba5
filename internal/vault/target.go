package vault

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/tenure-csi/tenure/provider"
)

// endpoint is an address and how TLS is done with it. It is comparable: calls
// with equal endpoints share connections.
type endpoint struct {
	addr            string // normalised
	ca, caDir       tlsPath
	cert, key       tlsPath
	serverName      string
	skipVerify      bool
	refuseLocalAddr bool
}

// tlsPath is a file or directory of PEM; fromSPC means below Config.TLSDir.
type tlsPath struct {
	path    string
	fromSPC bool
}

// target is where a call goes: a provider.Login with the daemon's settings for
// what it leaves out.
type target struct {
	endpoint
	namespace, mount, role string
}

// resolve completes a login with the daemon's settings and checks that it may
// be used. The daemon's client certificate and server name are for the
// operator's own addresses only; its CAs are no secret and serve any address.
func (s *Source) resolve(l provider.Login) (target, *provider.Error) {
	mount := s.cfg.Mount
	if l.Method == provider.AppRoleMethod || l.Method == provider.AWSMethod {
		mount = "" // the flag names a mount that takes pods' tokens
	}
	t := target{namespace: or(l.Namespace, s.cfg.Namespace), mount: or(l.Mount, mount, l.Method), role: l.Role}
	if clean := path.Clean(t.mount); clean != t.mount || path.IsAbs(clean) || clean == "." || strings.HasPrefix(clean, "..") {
		return t, &provider.Error{
			Class: provider.Invalid, Field: "vaultAuthMountPath",
			Cause:  fmt.Sprintf("%q is not the path of an auth mount", t.mount),
			Remedy: `write it as in "vault auth list", without "auth/" and without slashes at its ends`,
		}
	}
	var err *provider.Error
	if t.addr, err = s.address(l.Address); err != nil {
		return t, err
	}
	if l.SkipTLSVerify && !s.cfg.AllowSkipVerify {
		return t, &provider.Error{
			Class: provider.Denied, Field: "vaultSkipTLSVerify",
			Cause:  "the daemon does not allow TLS verification to be switched off",
			Remedy: "give the CA of Vault in vaultCACertPath, or have the operator allow it",
		}
	}
	t.skipVerify = l.SkipTLSVerify
	t.refuseLocalAddr = len(s.allowed) == 0
	own := slices.Contains(s.addrs.all, t.addr)

	t.ca, t.caDir = tlsPath{s.cfg.CACert, false}, tlsPath{s.cfg.CAPath, false}
	if l.CACertPath != "" || l.CADirectory != "" {
		t.ca, t.caDir = tlsPath{l.CACertPath, true}, tlsPath{l.CADirectory, true}
	}
	t.serverName = l.TLSServerName
	if own {
		t.serverName = or(t.serverName, s.cfg.ServerName)
		t.cert, t.key = tlsPath{s.cfg.ClientCert, false}, tlsPath{s.cfg.ClientKey, false}
	}
	if l.ClientCertPath != "" || l.ClientKeyPath != "" {
		t.cert, t.key = tlsPath{l.ClientCertPath, true}, tlsPath{l.ClientKeyPath, true}
	}
	return t, nil
}

// address gives the normalised address that an SPC's vaultAddress stands for.
func (s *Source) address(raw string) (string, *provider.Error) {
	if raw == "" {
		addr := s.addrs.pick()
		if addr == "" {
			return "", &provider.Error{
				Class: provider.Invalid, Field: "vaultAddress", Cause: "no Vault address is set",
				Remedy: "set vaultAddress, or have the operator start the daemon with --vault-addr",
			}
		}
		return addr, nil
	}
	addr, err := parseAddress(raw)
	if err != nil {
		return "", &provider.Error{
			Class: provider.Invalid, Field: "vaultAddress", Err: err,
			Cause:  fmt.Sprintf("%q is not a Vault address: %v", bounded(raw), err),
			Remedy: "write it like https://vault.example.com:8200",
		}
	}
	if len(s.allowed) > 0 && !slices.Contains(s.allowed, addr) {
		return "", &provider.Error{
			Class: provider.Denied, Field: "vaultAddress",
			Cause:  fmt.Sprintf("the daemon may not connect to %s, only to %s", bounded(addr), bounded(strings.Join(s.allowed, ", "))),
			Remedy: "use one of these, or have the operator add it to --allowed-vault-addrs",
		}
	}
	return addr, nil
}

// redirected gives the target for a standby's redirect to location. Only scheme
// and host are taken from it, they must be an address the operator named, and
// TLS is never left.
func (s *Source) redirected(from target, l provider.Login, location string) (target, error) {
	u, err := url.Parse(location)
	if err != nil || u.Host == "" {
		return from, errors.New("redirect without an address")
	}
	to, err := parseAddress((&url.URL{Scheme: u.Scheme, Host: u.Host}).String())
	switch {
	case err != nil:
		return from, fmt.Errorf("redirect to %q: %w", bounded(u.Host), err)
	case !slices.Contains(s.allowed, to):
		return from, fmt.Errorf("redirect to %s, which is not among the allowed addresses", bounded(to))
	case strings.HasPrefix(from.addr, "https:") && strings.HasPrefix(to, "http:"):
		return from, fmt.Errorf("redirect to %s, which would leave TLS", bounded(to))
	}
	l.Address = to
	t, perr := s.resolve(l)
	if perr != nil {
		return from, perr
	}
	return t, nil
}

// parseAddress normalises a Vault address: lower case, port always there, no
// slash at the end. Two spellings of one address give one text.
func parseAddress(raw string) (string, error) {
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil {
		return "", errors.New("malformed URL")
	}
	port := u.Port()
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return "", errors.New("scheme must be https or http")
	case u.Hostname() == "":
		return "", errors.New("no host")
	case u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return "", errors.New("only scheme, host, port and path may be given")
	case port == "" && u.Scheme == "https":
		port = "443"
	case port == "":
		port = "80"
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	prefix := strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	return (&url.URL{Scheme: u.Scheme, Host: net.JoinHostPort(host, port), Path: prefix}).String(), nil
}

// errLocalAddress refuses what only the node itself can reach.
var errLocalAddress = errors.New("address of the node itself")

// refuseLocal is a net.Dialer's Control. It looks at the address that is really
// dialled, so that no DNS answer leads to the node or to its metadata service.
func refuseLocal(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return errLocalAddress
	}
	ip := ap.Addr().Unmap()
	if ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast() {
		return errLocalAddress
	}
	return nil
}

// or returns the first text that is not empty.
func or(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}
