package format

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

// pkiData is an answer of a PKI engine's issue path, as Vault writes it: no
// newline at the end of a block. Its key and certificates are made once a run.
func pkiData(tb testing.TB) Secret {
	tb.Helper()
	chain, err := makeChain()
	require.NoError(tb, err)
	return Secret{Data: map[string]any{
		"private_key": chain[0], "private_key_type": "ec", "certificate": chain[3],
		"issuing_ca": chain[2], "ca_chain": []any{chain[2], chain[1]}, "serial_number": "03",
	}}
}

// makeChain gives the leaf's key, then root, intermediate and leaf certificate.
var makeChain = sync.OnceValues(func() (pems [4]string, err error) {
	encode := func(kind string, der []byte) string {
		return strings.TrimSuffix(string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})), "\n")
	}
	var parent *x509.Certificate
	var parentKey *ecdsa.PrivateKey
	for i := 1; i <= 3; i++ {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return pems, err
		}
		cert := &x509.Certificate{SerialNumber: big.NewInt(int64(i)), NotAfter: time.Now().Add(time.Hour), IsCA: i < 3, BasicConstraintsValid: true}
		if parent == nil {
			parent, parentKey = cert, key
		}
		der, err := x509.CreateCertificate(rand.Reader, cert, parent, &key.PublicKey, parentKey)
		if err != nil {
			return pems, err
		}
		keyDER, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return pems, err
		}
		parent, parentKey = cert, key
		pems[0], pems[i] = encode("EC PRIVATE KEY", keyDER), encode("CERTIFICATE", der)
	}
	return pems, nil
})

func TestPEM(t *testing.T) {
	read := func(change func(map[string]any)) ([]byte, tls.Certificate) {
		s := pkiData(t)
		change(s.Data)
		r, err := Render(provider.Object{Name: "tls.pem", Format: "pem"}, s)
		require.NoError(t, err)
		data := r.Files[0].Data
		pair, err := tls.X509KeyPair(data, data)
		require.NoError(t, err)
		return data, pair
	}
	s := pkiData(t).Data

	whole, pair := read(func(map[string]any) {})
	require.Len(t, pair.Certificate, 3)
	require.Equal(t, s["private_key"].(string)+"\n"+s["certificate"].(string)+"\n"+s["issuing_ca"].(string)+"\n"+s["ca_chain"].([]any)[1].(string)+"\n", string(whole))

	for name, change := range map[string]func(map[string]any){
		"newlines and text around": func(d map[string]any) { d["certificate"] = "subject=x\n" + d["certificate"].(string) + "\n\n# end\n" },
		"CRLF":                     func(d map[string]any) { d["private_key"] = strings.ReplaceAll(d["private_key"].(string), "\n", "\r\n") },
		"chain as one string": func(d map[string]any) {
			d["ca_chain"] = d["issuing_ca"].(string) + "\n" + d["ca_chain"].([]any)[1].(string)
		},
		"leaf again in the chain": func(d map[string]any) { d["ca_chain"] = append([]any{d["certificate"]}, d["ca_chain"].([]any)...) },
		"chain with the leaf":     func(d map[string]any) { d["certificate"] = d["certificate"].(string) + "\n" + d["issuing_ca"].(string) },
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := read(change)
			require.Equal(t, string(whole), string(got))
		})
	}
	for name, change := range map[string]func(map[string]any){
		"issuing_ca": func(d map[string]any) { delete(d, "ca_chain") },
		"null chain": func(d map[string]any) { d["ca_chain"] = nil },
		"no chain":   func(d map[string]any) { d["ca_chain"] = []any{} },
	} {
		t.Run(name, func(t *testing.T) {
			_, pair := read(change)
			require.Len(t, pair.Certificate, 2)
		})
	}
	_, pair = read(func(d map[string]any) { delete(d, "ca_chain"); delete(d, "issuing_ca") })
	require.Len(t, pair.Certificate, 1)
}

func TestPEMRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(map[string]any)
		want   string
	}{
		"no certificate": {func(d map[string]any) { delete(d, "certificate") }, `the entry "certificate" is missing`},
		"bundle": {func(d map[string]any) {
			d["certificate"] = d["private_key"].(string) + "\n" + d["certificate"].(string)
		}, "another kind"},
		"certificate as key": {func(d map[string]any) { d["private_key"] = d["certificate"] }, "another kind"},
		"two keys": {func(d map[string]any) {
			d["private_key"] = d["private_key"].(string) + "\n" + d["private_key"].(string)
		}, "too many"},
		"key in chain":        {func(d map[string]any) { d["ca_chain"] = []any{d["private_key"]} }, "another kind"},
		"chain of numbers":    {func(d map[string]any) { d["ca_chain"] = []any{1} }, "is not a string"},
		"empty chain element": {func(d map[string]any) { d["ca_chain"] = []any{""} }, "is not PEM"},
		"damaged in chain": {func(d map[string]any) {
			d["ca_chain"] = []any{"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n" + d["issuing_ca"].(string)}
		}, "damaged"},
		"too many": {func(d map[string]any) {
			d["ca_chain"] = []any{strings.Repeat(d["issuing_ca"].(string)+"\n", maxChain+1)}
		}, "too many"},
	} {
		t.Run(name, func(t *testing.T) {
			s := pkiData(t)
			c.change(s.Data)
			_, err := Render(provider.Object{Name: "x", Format: "pem"}, s)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "BEGIN")
		})
	}
}

// Whatever is stored, the file is PEM to its last byte, key first.
func FuzzPEM(f *testing.F) {
	s := pkiData(f).Data
	f.Add(s["private_key"].(string), s["certificate"].(string), s["issuing_ca"].(string))
	f.Add("-----BEGIN PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAA==\n-----END PRIVATE KEY-----", "x\n"+s["certificate"].(string)+"y", "")
	f.Fuzz(func(t *testing.T, key, leaf, chain string) {
		r, err := Render(provider.Object{Name: "x", Format: "pem"}, Secret{Data: map[string]any{"private_key": key, "certificate": leaf, "ca_chain": chain}})
		if err != nil {
			return
		}
		rest := r.Files[0].Data
		for i := 0; len(rest) > 0; i++ {
			before := rest
			var block *pem.Block
			block, rest = pem.Decode(rest)
			require.NotNil(t, block)
			require.Equal(t, i > 0, block.Type == "CERTIFICATE")
			require.Equal(t, string(pem.EncodeToMemory(block)), string(before[:len(before)-len(rest)]))
		}
	})
}
