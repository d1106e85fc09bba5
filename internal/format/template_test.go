package format

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/tenure-csi/tenure/provider"
)

const templateJSON = `{"username":"u'\"<","port":5432,"big":12345678901234567890.10,"on":true,"off":false,"none":null,"empty":"","my-key":"dash",
	"list":["a","b",7],"users":[{"name":"x","roles":["r1","r2"]},{"name":"y","roles":[]}],"nested":{"b":"2","a":"1"},"b64":"aGk=","text":"l1\nl2"}`

func renderTemplate(tb testing.TB, text string, s Secret) (string, error) {
	tb.Helper()
	r, err := Render(provider.Object{Name: "x", Format: "template", Template: text}, s)
	if err != nil {
		return "", err
	}
	return string(r.Files[0].Data), nil
}

func TestTemplate(t *testing.T) {
	s := secretOf(t, templateJSON)
	s.Expires = end
	for text, want := range map[string]string{
		"plain":                                                                        "plain",
		"{{.Data.username}}":                                                           `u'"<`,
		"{{.Data.port}} {{.Data.big}}":                                                 "5432 12345678901234567890.10",
		"{{.Data.on}}{{.Data.off}}":                                                    "truefalse",
		`{{index .Data "my-key"}}`:                                                     "dash",
		`{{index .Data "users" 0 "name"}}`:                                             "x",
		`{{(index .Data "nested").a}}`:                                                 "1",
		`{{get .Data "nope" | default "d"}}`:                                           "d",
		`{{default "d" .Data.none}}`:                                                   "d",
		`{{default "d" .Data.empty}}`:                                                  "d",
		`{{default "d" .Data.off}}`:                                                    "false",
		`{{with get .Data "nope"}}x{{end}}`:                                            "",
		`{{with .Data.port}}p={{.}}{{end}}`:                                            "p=5432",
		`{{if .Data.none}}a{{else if .Data.on}}b{{else}}c{{end}}`:                      "b",
		`{{if and .Data.on (not .Data.off)}}y{{end}}`:                                  "y",
		`{{if eq .Data.port 5432}}y{{end}}`:                                            "y",
		`{{if eq .Data.port "1" "5432"}}y{{end}}`:                                      "y",
		`{{if ne .Data.port "5432"}}y{{else}}n{{end}}`:                                 "n",
		`{{len .Data.list}}`:                                                           "3",
		`{{range .Data.list}}{{.}},{{end}}`:                                            "a,b,7,",
		`{{range $i, $v := .Data.list}}{{$i}}{{$v}}{{end}}`:                            "0a1b27",
		`{{range $k, $v := .Data.nested}}{{$k}}={{$v}};{{end}}`:                        "a=1;b=2;",
		`{{range .Data.users}}{{.name}}:{{range .roles}}{{.}}{{else}}-{{end}} {{end}}`: "x:r1r2 y:- ",
		`{{range .Data.users}}{{range $.Data.list}}{{.}}{{end}}{{end}}`:                "ab7ab7",
		`{{range $u := .Data.users}}{{range $u.roles}}{{.}}{{end}}{{end}}`:             "r1r2",
		`{{$u := .Data.username}}{{shellQuote $u}}`:                                    `'u'\''"<'`,
		`{{quote .Data.username}} {{quote .Data.port}}`:                                `"u'\"<" "5432"`,
		`{{toJson .Data.users}}{{toJson .Data.port}}{{toJson .Data.none}}`:             `[{"name":"x","roles":["r1","r2"]},{"name":"y","roles":[]}]5432null`,
		`{{join "," .Data.list}}`:                                                      "a,b,7",
		`{{.Data.list | join ", "}}`:                                                   "a, b, 7",
		`{{indent 2 .Data.text}}`:                                                      "  l1\n  l2",
		`{{base64 "hi"}}{{base64Decode .Data.b64}}`:                                    "aGk=hi",
		`{{upper "aä"}}{{lower "A"}}{{trim " x\n"}}`:                                   "AÄax",
		`{{urlquery "a b+c/"}}`:                                                        "a%20b%2Bc%2F",
		`{{print .Data.port ":" true 1.5}}`:                                            "5432:true1.5",
		`{{.Lease.Expires}} {{unix .Lease.Expires}}`:                                   "2031-05-06T05:08:09Z 1935810489",
		"a {{- /* comment */ -}} b":                                                    "ab",
		`{{"{{"}}`:                                                                     "{{",
	} {
		require.NoError(t, CheckTemplate(text), text)
		got, err := renderTemplate(t, text, s)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	got, err := renderTemplate(t, "{{with .Lease.Expires}}{{.}}{{else}}renewable{{end}}", secretOf(t, templateJSON))
	require.NoError(t, err)
	require.Equal(t, "renewable", got)
}

// What CheckTemplate refuses is refused whatever the data is.
func TestTemplateLanguageIsClosed(t *testing.T) {
	for text, want := range map[string]string{
		`{{printf "%999999999d" 1}}`:           `line 1, column 3: function "printf" not defined`,
		`{{println 1}}`:                        `function "println" not defined`,
		`{{html .Data.x}}{{js .Data.x}}`:       `function "html" not defined`,
		`{{slice .Data.x 1}}`:                  `function "slice" not defined`,
		`{{call .Data.x}}`:                     `function "call" not defined`,
		`{{lt 1 2}}`:                           `function "lt" not defined`,
		`{{_tick 1}}`:                          `function "_tick" not defined`,
		`{{_emit 1}}`:                          `function "_emit" not defined`,
		`{{env "HOME"}}`:                       `function "env" not defined`,
		`{{define "a"}}{{end}}x`:               "define and block are not allowed",
		`{{define "template"}}x{{end}}`:        "define and block are not allowed",
		`{{define "template"}}x{{end}}y`:       "",
		`{{block "a" .}}x{{end}}`:              "define and block are not allowed",
		"x\n {{template \"template\"}}":        "line 2, column 13: only if, with, range and the listed functions are allowed",
		`{{template "a" .}}`:                   "only if, with, range and the listed functions are allowed",
		`{{range 1000000000}}{{end}}`:          "line 1, column 9: range goes over a field of the data only",
		`{{range $i := 9}}{{end}}`:             "range goes over a field of the data only",
		`{{range len .Data.x}}{{end}}`:         "range goes over a field of the data only",
		`{{range .}}{{end}}`:                   "range goes over a field of the data only",
		`{{range $}}{{end}}`:                   "range goes over a field of the data only",
		`{{$n := 9}}{{range $n}}{{end}}`:       "range goes over a field of the data only",
		`{{range (.Data.x)}}{{end}}`:           "range goes over a field of the data only",
		`{{range .Data.x | len}}{{end}}`:       "range goes over a field of the data only",
		`{{range (index .Data "x").y}}{{end}}`: "range goes over a field of the data only",
		`{{range .a}}{{range .b}}{{range .c}}{{end}}{{end}}{{end}}`:                           "range is nested more than 2 deep",
		`{{range .a}}{{else}}{{range .b}}{{with .x}}{{range .c}}{{end}}{{end}}{{end}}{{end}}`: "range is nested more than 2 deep",
		`{{range .a}}{{break}}{{end}}`:                                                        "only if, with, range",
		`{{range .a}}{{continue}}{{end}}`:                                                     "only if, with, range",
		`{{$a := 1}}{{$a = 2}}`:                                                               "a variable is set once, with :=",
		`{{$a := 1}}{{range $a = .x}}{{end}}`:                                                 "a variable is set once, with :=",
		`{{.Data.my-key}}`:                                                                    "line 1, column 11: bad character U+002D '-'",
		strings.Repeat("{{if .x}}", 300) + strings.Repeat("{{end}}", 300):                     "nested too deeply",
		"{{" + strings.Repeat("(", 5000) + "1" + strings.Repeat(")", 5000) + "}}":             "nested too deeply",
		"{{" + strings.Repeat("(", 20000) + "1" + strings.Repeat(")", 20000) + "}}":           "line 1: ",
		strings.Repeat("x", maxTemplate+1):                                                    "the template is longer than 65536 bytes",
		" \n":                                                                                 "the template is empty",
		"{{\x1b[31m}}":                                                                        "line 1, column 3: ",
	} {
		err := CheckTemplate(text)
		var e *provider.Error
		require.ErrorAs(t, err, &e, "%.80q", text)
		require.Equal(t, "template", e.Field)
		require.Contains(t, e.Cause, want, "%.80q", text)
		require.NotContains(t, e.Error(), "\x1b")
		require.Less(t, len(e.Cause), 300)
	}
}

// The parser tells the line alone.
func TestTemplateErrorsHaveAColumn(t *testing.T) {
	for text, want := range map[string]string{
		"a\n  {{.Data.x}} {{exec .Data.y}}\nb":     `line 2, column 17: function "exec" not defined`,
		"{{exe}}{{exec}}":                          `line 1, column 3: function "exe" not defined`,
		"{{.Data.x | nope}}":                       `line 1, column 13: function "nope" not defined`,
		"x {{.Data.x}":                             "line 1, column 12: bad character U+007D '}'",
		"{{.Data.x}} {{.Data.y\n":                  "line 2: unclosed action started in line 1",
		"{{.Data.x}} {{.Data.y ":                   "line 1, column 13: unclosed action",
		"ok {{quote \"abc}}":                       "line 1, column 12: unterminated quoted string",
		"{{if .Data.x}}a{{end}} {{end}} tail":      "line 1, column 24: unexpected {{end}}",
		"{{if .Data.x}}a{{else}}b{{else}}c{{end}}": "line 1, column 25: expected end; found {{else}}",
		"{{$x}}":                      `line 1, column 3: undefined variable "$x"`,
		"{{if}}a{{end}}":              "line 1, column 1: missing value for if",
		"{{range .Data.list}}\n{{.}}": "line 2: the template ends within an if, with or range: an {{end}} is missing",
		"{{exec 1}}" + strings.Repeat("x", 60_000): `line 1: function "exec" not defined`,
	} {
		var e *provider.Error
		require.ErrorAs(t, CheckTemplate(text), &e, "%.80q", text)
		require.Contains(t, e.Cause, want, "%.80q", text)
	}
}

// What only the data shows.
func TestTemplateExecutionFaults(t *testing.T) {
	s := secretOf(t, templateJSON)
	for text, want := range map[string]string{
		"{{.Data.nope}}":                        `line 1, column 8: there is no entry of this name; the data has "b64", "big"`,
		"\n{{.Nope}}":                           "line 2, column 3: there is no entry of this name",
		"{{.Objects.other.Data.v}}":             "there is no entry of this name", // nothing of other objects is there
		"{{$.Spec.Objects}}":                    "there is no entry of this name",
		`{{index . "Secrets"}}`:                 "index finds no such entry",
		`{{index .Lease "LeaseID"}}`:            "index finds no such entry",
		"{{.Data}}":                             "a list or a map has no text; use toJson, join or range",
		"{{.Data.list}}":                        "a list or a map has no text",
		"{{.Data.none}}":                        "a null has no text; use default",
		`{{get .Data "nope"}}`:                  "a null has no text; use default",
		`{{index .Data "nope"}}`:                "index finds no such entry",
		`{{index .Data.list 3}}`:                "index finds no such entry",
		`{{index .Data.list -1}}`:               "index finds no such entry",
		`{{.Data.port.Int64}}`:                  "this can't be evaluated",
		`{{.Data.big.String}}`:                  "this can't be evaluated",
		`{{.Lease.Expires.Format "2006"}}`:      "this can't be evaluated",
		`{{range .Data.port.Int64}}{{end}}`:     "this can't be evaluated",
		`{{range .Data.port}}{{end}}`:           "range needs a list or a map",
		`{{range .Data.username}}{{end}}`:       "range needs a list or a map",
		`{{range $i, $v := .Data.port}}{{end}}`: "range needs a list or a map",
		`{{.Data.username 5}}`:                  "this can't be evaluated",
		`{{indent 65 "x"}}`:                     "indent takes 0 to 64 spaces",
		`{{indent 1000000000 "x"}}`:             "indent takes 0 to 64 spaces",
		`{{indent .Data.port "x"}}`:             "this can't be evaluated",
		`{{unix "tomorrow"}}`:                   "the value is no time in RFC 3339",
		`{{base64Decode "%"}}`:                  "the value is not base64",
		`{{print 1i}}`:                          "has no text",
		`{{toJson 1i}}`:                         "can't be written as JSON",
		`{{shellQuote "\x00"}}`:                 "a shell can't carry a NUL byte",
		`{{toJson "\xff"}}`:                     "not UTF-8",
	} {
		require.NoError(t, CheckTemplate(text), text)
		_, err := renderTemplate(t, text, s)
		require.ErrorContains(t, err, want, text)
	}
}

// Templates and data that want time or memory get an error soon, and no memory
// beyond the data's own size and a few times the bounds.
func TestTemplateCostIsBounded(t *testing.T) {
	long := func(n int) []any {
		l := make([]any, n)
		for i := range l {
			l[i] = json.Number("0")
		}
		return l
	}
	many := map[string]any{}
	for i := range 50_000 {
		many[fmt.Sprint(i)] = nil
	}
	data := map[string]any{
		"s": "x", "kb": strings.Repeat("k", 1<<10), "mb": strings.Repeat("m", 1<<20), "list": long(500_000), "map": many,
		"lines": strings.Repeat("\n", 1<<20), "n": json.Number("1000000000000000000"),
	}
	double := "{{$a0 := .Data.kb}}"
	for i := range 1000 {
		double += fmt.Sprintf("{{$a%d := print $a%d $a%d}}", i+1, i, i)
	}
	for name, c := range map[string]struct{ text, want string }{
		"huge output":            {strings.Repeat("{{.Data.mb}}", 2), "writes more than 1048576 bytes"},
		"output of a loop":       {"{{range .Data.map}}" + strings.Repeat("x", 1000) + "{{end}}", "writes more than 1048576 bytes"},
		"text around":            {"{{range .Data.map}}" + strings.Repeat("x", 60000) + "{{end}}", "writes more than 1048576 bytes"},
		"doubled string":         {double, "too much work"},
		"print of many":          {"{{$a := print " + strings.Repeat("$.Data.mb ", 6000) + "}}", "too much work"},
		"square loop":            {"{{range .Data.list}}{{range $.Data.list}}{{end}}{{end}}", "too much work"},
		"square loop over a map": {"{{range .Data.list}}{{range $.Data.map}}{{end}}{{end}}", "too much work"},
		"empty body":             {"{{range .Data.list}}{{end}}", "too much work"},
		"wide body":              {"{{range .Data.map}}" + strings.Repeat("{{if $.Data.s}}{{end}}", 2900) + "{{end}}", "too much work"},
		"join":                   {"{{$a := join .Data.mb .Data.list}}", "too much work"},
		"indent":                 {"{{$a := indent 64 .Data.lines}}", "too much work"},
		"indent of indent":       {`{{$a := indent 10 .Data.lines}}{{$b := indent 64 $a}}`, "too much work"},
		"json of json":           {"{{$a := toJson .Data.mb}}" + strings.Repeat("{{$b := toJson $.Data}}", 2000), "too much work"},
		"compares":               {"{{range .Data.map}}{{if eq $.Data.mb $.Data.mb}}{{end}}{{end}}", "too much work"},
		"long keys":              {"{{range .Data.map}}{{if get $.Data $.Data.mb}}{{end}}{{end}}", "too much work"},
		"case mapping":           {strings.Repeat("{{$b := upper $.Data.mb}}", 2000), "too much work"},
		"chain":                  {"{{$b := .Data.mb" + strings.Repeat(" | base64", 5000) + "}}", "too much work"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, CheckTemplate(c.text))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			_, err := renderTemplate(t, c.text, Secret{Data: data})
			took := time.Since(began)
			runtime.ReadMemStats(&after)
			require.ErrorContains(t, err, c.want)
			require.Less(t, took, 5*time.Minute) // without the bounds these run for hours, on any machine
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(200<<20))
			t.Log(took, (after.TotalAlloc-before.TotalAlloc)>>20, "MiB")
		})
	}
}

// A template within the bounds has room for real work.
func TestTemplateRoom(t *testing.T) {
	data := map[string]any{}
	for i := range 5000 {
		data[fmt.Sprint("key", i)] = strings.Repeat("v", 100)
	}
	got, err := renderTemplate(t, "{{range $k, $v := .Data}}{{$k}}={{quote $v}}\n{{end}}", Secret{Data: data})
	require.NoError(t, err)
	require.Equal(t, 5000, strings.Count(got, "\n"))
}

// A template sees no method: neither its data's nor those of values it makes.
func TestTemplateDataHasNoMethods(t *testing.T) {
	for name, v := range map[string]any{"a Go integer": 5, "a float": 1.5, "a function": func() string { return "x" }, "a channel": make(chan int), "a struct": time.Now(), "a secret": provider.Secret("x")} {
		_, err := renderTemplate(t, "{{.Data.v}}", Secret{Data: map[string]any{"v": v}})
		require.ErrorContains(t, err, "the data is not JSON", name)
	}
}

// What passes the check renders or fails within the bounds, twice the same, and
// shows no value in an error.
func FuzzTemplate(f *testing.F) {
	f.Add("{{range $k, $v := .Data}}{{$k}}={{toJson $v}}{{end}}", "c4n4ry")
	f.Add("{{with $x := index .Data \"v\"}}{{$x | base64 | quote | indent 4}}{{else}}{{.Lease.Expires}}{{end}}", "\n'")
	f.Add("{{if eq .Data.v \"a\"}}{{range .Data.list}}{{range $.Data.list}}{{.}}{{end}}{{end}}{{end}}", "a")
	f.Fuzz(func(t *testing.T, text, value string) {
		value = "c4n4ry" + value
		if strings.Contains(text, "c4n4ry") {
			return
		}
		s := Secret{Data: map[string]any{"v": value, "list": []any{value, json.Number("7"), map[string]any{"v": value}}}}
		first, err := renderTemplate(t, text, s)
		if err != nil {
			require.NotContains(t, err.Error(), "c4n4ry")
			return
		}
		require.NoError(t, CheckTemplate(text))
		require.LessOrEqual(t, len(first), maxOutput)
		second, err := renderTemplate(t, text, s)
		require.NoError(t, err)
		require.Equal(t, first, second)
	})
}

// What a function escapes is read back byte for byte by those it is for.
func FuzzTemplateQuoting(f *testing.F) {
	f.Add("it's \"$HOME\"\n\x00%2B+ ")
	f.Fuzz(func(t *testing.T, value string) {
		s := Secret{Data: map[string]any{"v": value}}
		for text, read := range map[string]func(string) (string, error){
			"{{urlquery .Data.v}}": url.PathUnescape,
			"{{base64 .Data.v}}": func(got string) (string, error) {
				b, err := base64.StdEncoding.DecodeString(got)
				return string(b), err
			},
			"{{base64 .Data.v | base64Decode}}": func(got string) (string, error) { return got, nil },
			"{{quote .Data.v}}": func(got string) (back string, err error) {
				return back, json.Unmarshal([]byte(got), &back)
			},
		} {
			got, err := renderTemplate(t, text, s)
			if err != nil {
				require.True(t, len(value) > maxOutput/6 || !utf8.ValidString(value), "%s: %v", text, err)
				continue
			}
			back, err := read(got)
			require.NoError(t, err)
			require.Equal(t, value, back, text)
		}
	})
}

// TestTemplateIsParsedOnce: 1024 objects may have one template of 64 KiB.
func TestTemplateIsParsedOnce(t *testing.T) {
	text := strings.Repeat("{{.Data.a}}", 5000)
	require.NoError(t, CheckTemplate(text))
	require.Zero(t, testing.AllocsPerRun(1000, func() { _ = CheckTemplate(text) }))
	for i := range 20 { // others'
		require.NoError(t, CheckTemplate(strings.Repeat("x", maxTemplate-i)))
		require.LessOrEqual(t, trees.bytes, maxTrees)
		length := 0
		for text := range trees.byText {
			length += len(text)
		}
		require.Equal(t, trees.bytes, length)
	}
	require.NoError(t, CheckTemplate(text), "given up, and parsed again")
}
