package format

import (
	"encoding/pem"
	"strings"

	"github.com/tenure-csi/tenure/provider"
)

// pemFile writes one file for a TLS server or client, from data as Vault's PKI
// engine answers: private_key, certificate, then ca_chain, or issuing_ca where
// there is no chain. Text around the blocks is dropped, and so is a certificate
// of the chain that is already there.
func pemFile(_ provider.Object, s Secret) ([]byte, error) {
	key, err := pemBlocks(s.Data, "private_key", isKey, 1)
	if err != nil {
		return nil, err
	}
	leaf, err := pemBlocks(s.Data, "certificate", isCertificate, maxChain)
	if err != nil {
		return nil, err
	}
	issuers := "ca_chain"
	if list, ok := s.Data[issuers].([]any); s.Data[issuers] == nil || ok && len(list) == 0 {
		issuers = "issuing_ca"
	}
	var chain [][]byte
	if s.Data[issuers] != nil {
		if chain, err = pemBlocks(s.Data, issuers, isCertificate, maxChain); err != nil {
			return nil, err
		}
	}
	file := key[0]
	seen := map[string]bool{}
	for _, block := range append(leaf, chain...) {
		if !seen[string(block)] {
			seen[string(block)] = true
			file = append(file, block...)
		}
	}
	return file, nil
}

// maxChain bounds the certificates of one entry.
const maxChain = 64

func isKey(blockType string) bool         { return strings.HasSuffix(blockType, "PRIVATE KEY") }
func isCertificate(blockType string) bool { return blockType == "CERTIFICATE" }

// pemBlocks reads the blocks of an entry, a string or a list of strings, and
// gives each as encoding/pem writes it, with one newline at its end. Every block
// must be of the kind, and there must be one to limit of them.
func pemBlocks(data map[string]any, key string, isKind func(string) bool, limit int) ([][]byte, error) {
	bad := func(cause string) ([][]byte, error) {
		return nil, invalid("format", "the entry "+quoteName(key)+" "+cause,
			"read from a PKI engine's issue path, without \"format\" in secretArgs, or use format keys")
	}
	value, ok := data[key]
	if !ok {
		return bad("is missing; the data has " + keyNames(data))
	}
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	var blocks [][]byte
	for _, e := range list {
		text, ok := e.(string)
		if !ok {
			return bad("is not a string")
		}
		rest, want := []byte(text), strings.Count(text, "-----BEGIN ")
		for range want {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				return bad("holds a damaged PEM block") // pem.Decode skips such a block
			}
			if !isKind(block.Type) {
				return bad("holds a PEM block of another kind")
			}
			blocks = append(blocks, pem.EncodeToMemory(block))
		}
		if want == 0 {
			return bad("is not PEM")
		}
	}
	if len(blocks) == 0 || len(blocks) > limit {
		return bad("holds no PEM block, or too many")
	}
	return blocks, nil
}
