package format

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tenure-csi/tenure/provider"
)

// response has the fields of vault/api's Secret in its order, which is what the
// HashiCorp provider marshals for an object without secretKey.
type response struct {
	RequestID     string         `json:"request_id"`
	LeaseID       string         `json:"lease_id"`
	LeaseDuration any            `json:"lease_duration"`
	Renewable     bool           `json:"renewable"`
	Data          map[string]any `json:"data"`
	Warnings      any            `json:"warnings"`
	Auth          any            `json:"auth,omitempty"`
	WrapInfo      any            `json:"wrap_info,omitempty"`
	MountType     string         `json:"mount_type,omitempty"`
}

// hashicorp writes exactly what the HashiCorp provider does: without key the
// whole response, with key the entry, looked up in the inner "data" where there
// is a map of that name (KV version 2), with the HTML escaping of json.Marshal
// for what is no string.
func hashicorp(o provider.Object, s Secret) ([]byte, error) {
	data := responseData(s)
	if o.Key == "" {
		r := response{LeaseDuration: s.Envelope["lease_duration"], Data: data, Warnings: s.Envelope["warnings"], Auth: s.Envelope["auth"], WrapInfo: s.Envelope["wrap_info"]}
		r.RequestID, _ = s.Envelope["request_id"].(string)
		r.LeaseID, _ = s.Envelope["lease_id"].(string)
		r.Renewable, _ = s.Envelope["renewable"].(bool)
		r.MountType, _ = s.Envelope["mount_type"].(string)
		if r.LeaseDuration == nil {
			r.LeaseDuration = 0
		}
		return hashicorpJSON(r)
	}
	if inner, ok := data["data"].(map[string]any); ok {
		data = inner
	}
	value, err := entry(data, o.Key)
	if err != nil {
		return nil, err
	}
	if text, ok := value.(string); ok {
		return decode([]byte(text), o.Encoding)
	}
	text, err := hashicorpJSON(value)
	if err != nil {
		return nil, err
	}
	return decode(text, o.Encoding)
}

// responseData is the data as the backend sent it, for KV version 2 with metadata.
func responseData(s Secret) map[string]any {
	if data, ok := s.Envelope["data"].(map[string]any); ok {
		return data
	}
	return s.Data
}

func hashicorpJSON(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil { // its text may show a value
		return nil, invalid("secretPath", "the data is not JSON", "check what secretPath holds")
	}
	return b, nil
}

// raw writes one value byte for byte: the entry of the key, or the only one.
func raw(o provider.Object, s Secret) ([]byte, error) {
	key := o.Key
	if key == "" {
		if len(s.Data) > 1 {
			return nil, invalid("secretKey", "format raw writes one value and the data has "+keyNames(s.Data), "set secretKey to one of them")
		}
		for key = range s.Data {
		}
	}
	value, err := entry(s.Data, key)
	if err != nil {
		return nil, err
	}
	if value == nil {
		return nil, invalid("secretKey", "the entry "+quoteName(key)+" is null", "choose an entry that has a value")
	}
	text, err := textOf(key, value)
	if err != nil {
		return nil, err
	}
	return decode([]byte(text), o.Encoding)
}

// jsonFile writes the data as one line of JSON, keys sorted. Where the final end
// is known it adds "expiration", in RFC 3339, UTC and whole seconds.
func jsonFile(_ provider.Object, s Secret) ([]byte, error) {
	data := s.Data
	if !s.Expires.IsZero() {
		if _, taken := data["expiration"]; taken {
			return nil, invalid("format", "the data has an entry \"expiration\", the name under which format json tells the end of the credential",
				"use format template with {{toJson .Data}}, or format keys")
		}
		data = maps.Clone(data)
		data["expiration"] = s.Expires.UTC().Format(time.RFC3339)
	}
	b, err := exactJSON(data)
	if err != nil {
		return nil, invalid("format", "the data "+err.Error(), "use format raw with secretKey for such a value")
	}
	return append(b, '\n'), nil
}

var fileName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,255}$`)

// keyFiles writes a file a key, in a directory named as the object. Null is no
// value and gives no file.
func keyFiles(o provider.Object, s Secret) ([]File, error) {
	var files []File
	for _, key := range presentKeys(s.Data) {
		name := o.Name + "/" + key
		if !fileName.MatchString(key) || strings.HasPrefix(key, "..") || !validPath(name) {
			return nil, invalid("format", "the entry "+quoteName(key)+" can't be the name of a file",
				"rename it to letters, digits, \".\", \"_\" and \"-\", or use format json or template")
		}
		text, err := textOf(key, s.Data[key])
		if err != nil {
			return nil, err
		}
		files = append(files, File{name, []byte(text)})
	}
	if files == nil {
		return nil, noValues()
	}
	return files, nil
}

// presentKeys lists the keys of entries that are not null, sorted.
func presentKeys(data map[string]any) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(data)), func(key string) bool { return data[key] == nil })
}

func noValues() error {
	return invalid("secretPath", "every entry of the data is null", "check what secretPath holds")
}

// textOf is a value as formats write it: strings as they are, others as JSON.
func textOf(key string, value any) (string, error) {
	if s, ok := value.(string); ok {
		return s, nil
	}
	b, err := exactJSON(value)
	if err != nil {
		return "", invalid("format", "the entry "+quoteName(key)+" "+err.Error(), "store it as a string")
	}
	return string(b), nil
}

// exactJSON marshals without HTML escaping, and refuses the strings that
// encoding/json would change. Its errors hold no value.
func exactJSON(v any) ([]byte, error) {
	if !validUTF8(v) {
		return nil, errors.New("has a string that is not UTF-8, which JSON can't carry")
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, errors.New("can't be written as JSON")
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func validUTF8(v any) bool {
	switch v := v.(type) {
	case string:
		return utf8.ValidString(v)
	case []any:
		return !slices.ContainsFunc(v, func(e any) bool { return !validUTF8(e) })
	case map[string]any:
		for key, e := range v {
			if !utf8.ValidString(key) || !validUTF8(e) {
				return false
			}
		}
	}
	return true
}

func entry(data map[string]any, key string) (any, error) {
	value, ok := data[key]
	if !ok {
		return nil, invalid("secretKey", "the data has no entry "+quoteName(key)+"; it has "+keyNames(data), "set secretKey to one of them")
	}
	return value, nil
}

// decode undoes the encoding under which a value is stored.
func decode(text []byte, encoding string) ([]byte, error) {
	var decoded []byte
	var err error
	switch strings.ToLower(encoding) {
	case "", "utf-8":
		return text, nil
	case "base64":
		decoded, err = base64.StdEncoding.DecodeString(string(text))
	case "hex":
		decoded, err = hex.DecodeString(string(text))
	default:
		return nil, invalid("encoding", "the encoding "+quoteName(encoding)+" is not known", "use utf-8, base64 or hex")
	}
	if err != nil {
		return nil, invalid("encoding", "the value is not "+strings.ToLower(encoding), "correct encoding, or the value at the backend")
	}
	return decoded, nil
}

// maxNames bounds the keys that an error lists.
const maxNames = 12

// keyNames lists keys for an error text; the names alone, and not too many.
func keyNames(data map[string]any) string {
	keys := slices.Sorted(maps.Keys(data))
	rest := len(keys) - maxNames
	if rest > 0 {
		keys = keys[:maxNames]
	}
	for i, key := range keys {
		keys[i] = quoteName(key)
	}
	list := strings.Join(keys, ", ")
	if rest > 0 {
		list += fmt.Sprintf(" and %d more", rest)
	}
	return list
}

// quoteName makes a name that someone else chose fit for an error text.
func quoteName(name string) string {
	if len(name) > 64 {
		name = name[:64] + "…"
	}
	return strconv.Quote(name)
}
