package format

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/template"
	"time"
)

// The functions that are added to every template and that none can name.
const (
	tickName = "_tick" // first in each loop's body
	emitName = "_emit" // last in each pipeline that writes
)

// work counts what one execution of a template costs.
type work struct{ left int }

// functions are what a template may call, beside and, or, not and len, bound to
// the count of one execution. All are pure. "text" below is a string, a number
// or a bool; anything else, null too, is an error, never Go's notation of it.
//
//	toJson VALUE           compact JSON, keys sorted, numbers as they came
//	quote TEXT             a JSON string, right for YAML too
//	shellQuote TEXT        one word for a POSIX shell; NUL is an error
//	base64 TEXT, base64Decode TEXT
//	upper TEXT, lower TEXT, trim TEXT (white space at both ends)
//	urlquery TEXT          percent-encoding for any part of a URI
//	indent N TEXT          N spaces (up to 64) before each line
//	join SEPARATOR LIST    the texts of a list
//	print TEXT...          the texts, one after the other
//	eq TEXT TEXT...        whether the first is any of the others; ne: of two, whether not
//	get MAP KEY            the entry, or null
//	index VALUE KEY...     the entry of a map or, by number from 0, of a list; an error when missing
//	default TEXT VALUE     VALUE, or TEXT where it is null or empty
//	unix TEXT              the Unix seconds of a time in RFC 3339
func (w *work) functions() template.FuncMap {
	return template.FuncMap{
		tickName: w.tick, emitName: w.text,
		"toJson": w.toJSON, "quote": w.quote, "print": w.print, "join": w.join, "indent": w.indent, "eq": w.eq, "ne": w.ne,
		"shellQuote": w.shellQuote, "upper": w.mapping(strings.ToUpper), "lower": w.mapping(strings.ToLower),
		"trim": w.mapping(strings.TrimSpace), "urlquery": w.mapping(percent), "base64Decode": w.base64Decode,
		"base64": w.mapping(func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }),
		"get":    w.get, "index": w.index, "default": defaultTo, "unix": unix,
	}
}

// functionNames lists them for an error text.
func functionNames() string {
	names := slices.Sorted(maps.Keys(new(work).functions()))
	names = slices.DeleteFunc(names, func(name string) bool { return name[0] == '_' })
	return "and, or, not, len, " + strings.Join(names, ", ")
}

func (w *work) spend(n int) error {
	if w.left -= n; w.left < 0 {
		return fault("the template does too much work")
	}
	return nil
}

func (w *work) tick(nodes int) (string, error) { return "", w.spend(nodes * nodeWork) }

// text gives the text of a scalar and pays for it.
func (w *work) text(v any) (string, error) {
	s := ""
	switch v := v.(type) {
	case string:
		s = v
	case number:
		s = string(v)
	case bool, int, int64, float64: // literals of the template and results of functions
		s = fmt.Sprint(v)
	case nil:
		return "", fault("a null has no text; use default")
	default:
		return "", fault("a list or a map has no text; use toJson, join or range")
	}
	return s, w.spend(len(s))
}

// paid gives the result of a function after it is paid for.
func (w *work) paid(s string) (string, error) { return s, w.spend(len(s)) }

func (w *work) mapping(f func(string) string) func(any) (string, error) {
	return func(v any) (string, error) {
		s, err := w.text(v)
		if err != nil {
			return "", err
		}
		return w.paid(f(s))
	}
}

func (w *work) toJSON(v any) (string, error) {
	v, err := w.jsonValue(v)
	if err != nil {
		return "", err
	}
	b, err := exactJSON(v)
	if err != nil {
		return "", fault("the value " + err.Error())
	}
	return w.paid(string(b))
}

// jsonValue undoes templateData and pays for each part of v.
func (w *work) jsonValue(v any) (_ any, err error) {
	if err = w.spend(nodeWork / 4); err != nil {
		return nil, err
	}
	switch v := v.(type) {
	case number:
		return json.Number(v), nil
	case map[string]any:
		m := make(map[string]any, len(v))
		for key, e := range v {
			if m[key], err = w.jsonValue(e); err != nil {
				return nil, err
			}
		}
		return m, nil
	case []any:
		l := make([]any, len(v))
		for i, e := range v {
			if l[i], err = w.jsonValue(e); err != nil {
				return nil, err
			}
		}
		return l, nil
	}
	return v, nil
}

func (w *work) quote(v any) (string, error) {
	s, err := w.text(v)
	if err != nil {
		return "", err
	}
	return w.toJSON(s)
}

func (w *work) shellQuote(v any) (string, error) {
	s, err := w.text(v)
	if err != nil {
		return "", err
	}
	if strings.Contains(s, "\x00") {
		return "", fault("a shell can't carry a NUL byte")
	}
	return w.paid(shellQuote(s))
}

func (w *work) base64Decode(v any) (string, error) {
	s, err := w.text(v)
	if err != nil {
		return "", err
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "", fault("the value is not base64")
	}
	return w.paid(string(b))
}

func (w *work) print(list ...any) (string, error) { return w.join("", list) }

func (w *work) join(sep string, list []any) (string, error) {
	texts := make([]string, len(list))
	for i, v := range list {
		s, err := w.text(v)
		if err != nil {
			return "", err
		}
		texts[i] = s
		if err := w.spend(len(sep) + len(s)); err != nil { // before it is made
			return "", err
		}
	}
	return strings.Join(texts, sep), nil
}

func (w *work) indent(n int, v any) (string, error) {
	if n < 0 || n > 64 {
		return "", fault("indent takes 0 to 64 spaces")
	}
	s, err := w.text(v)
	if err != nil {
		return "", err
	}
	margin := strings.Repeat(" ", n)
	if err := w.spend(len(s) + n*(1+strings.Count(s, "\n"))); err != nil { // before it is made
		return "", err
	}
	return margin + strings.ReplaceAll(s, "\n", "\n"+margin), nil
}

func (w *work) eq(v any, others ...any) (bool, error) {
	s, err := w.text(v)
	if err != nil {
		return false, err
	}
	for _, o := range others {
		other, err := w.text(o)
		if err != nil {
			return false, err
		}
		if s == other {
			return true, nil
		}
	}
	return false, nil
}

func (w *work) ne(v, other any) (bool, error) {
	same, err := w.eq(v, other)
	return !same, err
}

func (w *work) get(m map[string]any, key string) (any, error) { return m[key], w.spend(len(key)) }

func (w *work) index(v any, keys ...any) (any, error) {
	for _, key := range keys {
		found := false
		switch k := key.(type) {
		case string:
			if err := w.spend(len(k)); err != nil {
				return nil, err
			}
			if m, ok := v.(map[string]any); ok {
				v, found = m[k]
			}
		case int:
			if l, ok := v.([]any); ok && k >= 0 && k < len(l) {
				v, found = l[k], true
			}
		}
		if !found {
			return nil, fault("index finds no such entry")
		}
	}
	return v, nil
}

func defaultTo(text, v any) any {
	if v == nil || v == "" {
		return text
	}
	return v
}

func unix(text string) (int64, error) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return 0, fault("the value is no time in RFC 3339")
	}
	return t.Unix(), nil
}
