package node

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	kubeconfig "k8s.io/client-go/tools/clientcmd/api/v1"
	"sigs.k8s.io/yaml"
)

// authority is the cluster's CA. One key pair serves all of its certificates: a
// cluster that lives for minutes has nobody to keep them apart from.
type authority struct {
	cert        *x509.Certificate
	key         *ecdsa.PrivateKey
	pem, keyPEM []byte
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the cluster's key: %w", err)
	}
	a := &authority{key: key}
	der, err := x509.MarshalECPrivateKey(key) // the form that kube-apiserver also reads the public key from
	if err != nil {
		return nil, fmt.Errorf("making the cluster's key: %w", err)
	}
	a.keyPEM = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	a.cert = certificate(pkix.Name{CommonName: "kubernetes"})
	a.cert.IsCA, a.cert.BasicConstraintsValid = true, true
	a.cert.KeyUsage |= x509.KeyUsageCertSign
	if a.pem, err = a.sign(a.cert); err != nil {
		return nil, err
	}
	return a, nil
}

// certificate answers a certificate that is good for a day, as client and as server.
func certificate(subject pkix.Name) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: subject,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

func (a *authority) sign(c *x509.Certificate) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, a.key.Public(), crypto.Signer(a.key))
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for %s: %w", c.Subject.CommonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// client answers a certificate for a user of kube-apiserver.
func (a *authority) client(user string, groups ...string) ([]byte, error) {
	return a.sign(certificate(pkix.Name{CommonName: user, Organization: groups}))
}

// server answers kube-apiserver's own certificate.
func (a *authority) server() ([]byte, error) {
	c := certificate(pkix.Name{CommonName: "kube-apiserver"})
	c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), address.AsSlice(), net.IPv4(10, 96, 0, 1)}
	c.DNSNames = []string{"kubernetes.default.svc", "localhost"}
	return a.sign(c)
}

// writeKubeconfig writes a file with which a program calls kube-apiserver as user.
func (a *authority) writeKubeconfig(path string, user kubeconfig.AuthInfo) error {
	text, err := yaml.Marshal(kubeconfig.Config{
		APIVersion: "v1", Kind: "Config", CurrentContext: "node",
		Clusters:  []kubeconfig.NamedCluster{{Name: "node", Cluster: kubeconfig.Cluster{Server: URL, CertificateAuthorityData: a.pem}}},
		Contexts:  []kubeconfig.NamedContext{{Name: "node", Context: kubeconfig.Context{Cluster: "node", AuthInfo: "node"}}},
		AuthInfos: []kubeconfig.NamedAuthInfo{{Name: "node", AuthInfo: user}},
	})
	if err != nil {
		return fmt.Errorf("writing a kubeconfig: %w", err)
	}
	return writeFile(path, text)
}

// writeFile writes a file of the node's configuration, with its directory.
func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("making the directory of %s: %w", path, err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
