package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/tenure-csi/tenure/internal/format"
	"github.com/tenure-csi/tenure/internal/tenant"
	"github.com/tenure-csi/tenure/provider"
)

// report is what validate found; its JSON is what -o json prints.
type report struct {
	Checked  int            `json:"checked"`  // SecretProviderClasses
	Others   int            `json:"others"`   // objects of other kinds
	Foreign  map[string]int `json:"foreign"`  // SecretProviderClasses left out, by their provider
	Problems []finding      `json:"problems"` // in the order of files and lines

	providers []string
	strict    bool
	rules     *tenant.Rules // nil: who may be which tenant is not checked
}

// finding is one problem or warning.
type finding struct {
	File     string `json:"file"`
	Line     int    `json:"line,omitempty"`   // in File; 0 where it is not known
	SPC      string `json:"spc,omitempty"`    // namespace/name
	Object   string `json:"object,omitempty"` // objectName, or "#3" without a good one
	Field    string `json:"field,omitempty"`
	Severity string `json:"severity"` // "error" or "warning"
	Cause    string `json:"cause"`
	Remedy   string `json:"remedy,omitempty"`
}

// validate checks SecretProviderClasses without a cluster. It answers an error
// when one has problems, so that a pipeline stops there.
func validate(args []string, stdin io.Reader, stdout io.Writer) error {
	var paths []string
	r := &report{Foreign: map[string]int{}, Problems: []finding{}}
	flags := flag.NewFlagSet("validate", flag.ContinueOnError)
	flags.Func("f", "`path` of a file, of a directory whose *.yaml, *.yml and *.json are all read, or - for standard input; repeat it for several", func(path string) error {
		paths = append(paths, path)
		return nil
	})
	flags.Func("provider-name", "`name` that SecretProviderClasses have as provider to be checked; repeat it, or separate by commas (default tenure)", list(&r.providers))
	var bindings string
	flags.StringVar(&bindings, "tenant-bindings", "", "`file` with the cluster's rules of which pods may be which tenants: it is checked itself, without -f too,\nand the tenants of each SecretProviderClass against it")
	flags.BoolVar(&r.strict, "strict", false, "take warnings for errors")
	output := flags.String("o", "text", "`format`: text or json")
	schema := flags.Bool("schema", false, "print the JSON schema of SecretProviderClasses, for editors, and check nothing")
	if ok, err := parse(flags, args, stdout); !ok {
		return err
	}
	switch {
	case *schema:
		_, err := stdout.Write(provider.Schema())
		return err
	case len(paths) == 0 && bindings == "":
		return &usageError{errors.New("-f is missing: name a file, a directory, or - for standard input")}
	case *output != "text" && *output != "json":
		return &usageError{fmt.Errorf("-o %q is not known; use text or json", *output)}
	}
	if len(r.providers) == 0 {
		r.providers = []string{"tenure"}
	}
	if bindings != "" {
		if err := r.readBindings(bindings); err != nil {
			return &usageError{err}
		}
	}
	for _, path := range paths {
		if err := r.read(path, stdin); err != nil {
			return &usageError{err}
		}
	}
	return r.print(stdout, *output)
}

// read checks what path names. An error means that the path itself is wrong; what
// can't be read below it is a finding.
func (r *report) read(path string, stdin io.Reader) error {
	if path == "-" {
		text, err := io.ReadAll(stdin)
		r.readText("standard input", text, err)
		return nil
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return fs.WalkDir(os.DirFS(path), ".", func(name string, entry fs.DirEntry, err error) error {
			file := filepath.Join(path, name)
			switch {
			case err != nil:
				r.readText(file, nil, err)
			case !entry.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)):
				r.readFile(file)
			}
			return nil
		})
	default:
		r.readFile(path)
		return nil
	}
}

func (r *report) readFile(path string) {
	text, err := os.ReadFile(path)
	r.readText(path, text, err)
}

// readText checks the SecretProviderClasses of a file.
func (r *report) readText(file string, text []byte, err error) {
	if err != nil {
		r.note(finding{File: file, Cause: "can't be read: " + err.Error(), Remedy: "make it readable, or leave it out"})
		return
	}
	found, others := readManifest(file, text)
	r.Others += others
	for _, c := range found {
		if c.broken != nil {
			r.note(*c.broken)
		} else {
			r.check(c)
		}
	}
}

// made is the pod that a SecretProviderClass is checked for, with the namespace
// of that. Any is as good: the rules for parameters are the same for all.
var made = provider.Pod{Name: "pod", UID: "uid", ServiceAccount: "default"}

// namespace is what Kubernetes allows as one (RFC 1123 label).
var namespace = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// check finds what is wrong with one SecretProviderClass for Tenure: what the
// daemon would answer to a pod that mounts it, before it asks Vault.
func (r *report) check(c *class) {
	before := len(r.Problems)
	defer func() {
		slices.SortStableFunc(r.Problems[before:], func(a, b finding) int { return cmp.Compare(a.Line, b.Line) })
	}()
	if c.Spec.Provider == "" {
		r.add(c, finding{Field: "provider", Cause: "is missing", Remedy: "set provider: " + r.providers[0]})
	} else if !slices.Contains(r.providers, c.Spec.Provider) {
		r.Foreign[c.Spec.Provider]++
		return
	}
	r.Checked++
	if c.Metadata.Name == "" {
		r.add(c, finding{Field: "metadata.name", Cause: "is missing", Remedy: "give the SecretProviderClass a name"})
	}
	pod := made
	if pod.Namespace = c.namespace(); !namespace.MatchString(pod.Namespace) {
		r.add(c, finding{Field: "metadata.namespace", Cause: "is no name that Kubernetes allows", Remedy: "use lower-case letters, digits and -"})
		pod.Namespace = "default"
	}
	for _, f := range c.problems {
		r.add(c, f)
	}
	request, err := provider.Decode(c.mountRequest(pod), c.Spec.Provider, "/")
	if problem, ok := errors.AsType[*provider.Error](err); ok {
		r.add(c, finding{Cause: problem.Cause, Remedy: problem.Remedy})
		return
	}
	warnings, problems := provider.Validate(request, format.Check)
	for _, p := range problems {
		line, cause := c.line(p)
		r.add(c, finding{Line: line, Object: p.Object, Field: p.Field, Cause: cause, Remedy: p.Remedy})
	}
	r.checkTenants(c, request)
	for _, text := range warnings {
		r.add(c, finding{Severity: "warning", Cause: text})
	}
}

// mountRequest is the driver's call for a pod that mounts c.
func (c *class) mountRequest(pod provider.Pod) *v1alpha1.MountRequest {
	attributes := maps.Clone(c.parameters)
	maps.Copy(attributes, map[string]string{
		"csi.storage.k8s.io/pod.name":            pod.Name,
		"csi.storage.k8s.io/pod.namespace":       pod.Namespace,
		"csi.storage.k8s.io/pod.uid":             pod.UID,
		"csi.storage.k8s.io/serviceAccount.name": pod.ServiceAccount,
		"secretProviderClass":                    c.Metadata.Name,
	})
	text, err := json.Marshal(attributes)
	if err != nil {
		panic(err) // strings always marshal
	}
	return &v1alpha1.MountRequest{
		Attributes: string(text),
		TargetPath: "/pods/" + pod.UID + "/volumes/kubernetes.io~csi/volume/mount",
		Permission: "420",
	}
}

// add notes a finding about c.
func (r *report) add(c *class, f finding) {
	r.note(c.place(f))
}

// note adds f as an error, unless it is a warning and may be one.
func (r *report) note(f finding) {
	if f.Severity == "" || r.strict {
		f.Severity = "error"
	}
	r.Problems = append(r.Problems, f)
}

// print writes what was found, and answers the summary as an error if there was
// an error among it.
func (r *report) print(w io.Writer, output string) error {
	summary, failed := r.summary()
	if output == "json" {
		out := json.NewEncoder(w)
		out.SetEscapeHTML(false)
		out.SetIndent("", "  ")
		if err := out.Encode(r); err != nil {
			return err
		}
	} else {
		for _, f := range r.Problems {
			fmt.Fprintln(w, printable(f.String()))
		}
	}
	if failed {
		return errors.New(summary)
	}
	if output == "text" {
		fmt.Fprintln(w, summary)
	}
	return nil
}

// String renders file:line: namespace/name: object, field: cause; remedy, a form
// that editors and pipelines turn into links.
func (f finding) String() string {
	where := f.File
	if f.Line > 0 {
		where += fmt.Sprintf(":%d", f.Line)
	}
	if f.SPC != "" {
		where += ": " + f.SPC
	}
	if f.Severity == "warning" {
		where += ": warning"
	}
	return where + ": " + (&provider.Error{Object: f.Object, Field: f.Field, Cause: f.Cause, Remedy: f.Remedy}).Error()
}

func (r *report) summary() (text string, failed bool) {
	warned := 0
	for _, f := range r.Problems {
		if f.Severity == "warning" {
			warned++
		}
	}
	errs := len(r.Problems) - warned
	text = fmt.Sprintf("%s checked: %s, %s", classes(r.Checked), count(errs, "error"), count(warned, "warning"))
	var left []string
	for _, name := range slices.Sorted(maps.Keys(r.Foreign)) {
		left = append(left, classes(r.Foreign[name])+" of provider "+printable(name))
	}
	if r.Others > 0 {
		left = append(left, count(r.Others, "object")+" of other kinds")
	}
	if left != nil {
		text += "; left out: " + strings.Join(left, ", ")
	}
	return text, errs > 0
}

func classes(n int) string {
	if n == 1 {
		return "1 SecretProviderClass"
	}
	return fmt.Sprintf("%d SecretProviderClasses", n)
}
