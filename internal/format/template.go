package format

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"text/template"
	"text/template/parse"
	"time"
	"unicode"

	"github.com/tenure-csi/tenure/provider"
)

// The bounds of a template. Work counts bytes that functions take and give, and
// nodeWork for each node executed in a loop: a render at the bound takes well
// under a second.
const (
	maxTemplate = 64 << 10 // bytes of source
	maxOutput   = 1 << 20  // bytes written
	maxWork     = 16 << 20
	nodeWork    = 64
	maxRanges   = 2   // nested
	maxNesting  = 200 // nodes within nodes
)

// root is the template's name in the errors of text/template.
const root = "template"

// templateFile executes the object's template. It knows .Data, the secret's
// data, and .Lease.Expires, the final end in RFC 3339 and UTC, or "" while the
// lease is renewable or none is known. The language is that of text/template
// with if, with, range over a field (two deep), variables set once, and the
// functions below; what may be missing is asked for with get.
//
// Nothing in the data has a method, no function has an effect, and loops, functions
// and output are counted, so that a hostile template costs bounded time and
// memory and sees this object alone.
func templateFile(o provider.Object, s Secret) ([]byte, error) {
	tree, err := parseTemplate(o.Template)
	if err != nil {
		return nil, err
	}
	data, err := templateData(s.Data)
	if err != nil {
		return nil, err
	}
	expires := ""
	if !s.Expires.IsZero() {
		expires = s.Expires.UTC().Format(time.RFC3339)
	}
	w := &work{left: maxWork}
	t, err := template.New(root).Option("missingkey=error").Funcs(w.functions()).AddParseTree(root, tree)
	if err != nil {
		return nil, templateError(0, 0, "the template can't be used")
	}
	var out limited
	if err := t.Execute(&out, map[string]any{"Data": data, "Lease": map[string]any{"Expires": expires}}); err != nil {
		return nil, execError(err, s.Data)
	}
	return out.data, nil
}

// CheckTemplate reports what is wrong with the text of a template whatever the
// data will be. Errors are *provider.Error about the field template, with the
// line and, where it is known, the column. It may be called from many goroutines
// at once.
func CheckTemplate(text string) error {
	_, err := parseTemplate(text)
	return err
}

// trees are of good templates: one in defaults is parsed once, not for each of a
// volume's 1024 objects. It is emptied before it would hold more than one volume's
// parameters can.
var trees = struct {
	sync.Mutex
	byText map[string]*parse.Tree
	bytes  int // of text
}{byText: map[string]*parse.Tree{}}

const maxTrees = 256 << 10

// parseTemplate gives the checked tree, which nobody may change.
func parseTemplate(text string) (*parse.Tree, error) {
	trees.Lock()
	tree := trees.byText[text]
	trees.Unlock()
	if tree != nil {
		return tree, nil
	}
	tree, err := newTree(text)
	if err != nil {
		return nil, err
	}
	trees.Lock()
	defer trees.Unlock()
	if trees.byText[text] == nil { // nobody else was faster
		if trees.bytes += len(text); trees.bytes > maxTrees {
			trees.bytes = len(text)
			clear(trees.byText)
		}
		trees.byText[text] = tree
	}
	return tree, nil
}

// newTree gives the checked tree, with the calls that count and check added.
func newTree(text string) (*parse.Tree, error) {
	if len(text) > maxTemplate {
		return nil, templateError(0, 0, fmt.Sprintf("the template is longer than %d bytes", maxTemplate))
	}
	if strings.TrimSpace(text) == "" {
		return nil, templateError(0, 0, "the template is empty")
	}
	known := map[string]any{"and": true, "or": true, "not": true, "len": true} // text/template's own
	maps.Copy(known, new(work).functions())
	maps.DeleteFunc(known, func(name string, _ any) bool { return name == tickName || name == emitName })
	read := func(text string) (*parse.Tree, map[string]*parse.Tree, error) {
		trees := map[string]*parse.Tree{}
		tree, err := parse.New(root).Parse(text, "", "", trees, known)
		return tree, trees, err
	}
	tree, trees, err := read(text)
	if err != nil {
		return nil, parseError(text, err, func(begin string) bool {
			_, _, again := read(begin)
			return again != nil && again.Error() == err.Error()
		})
	}
	if len(trees) != 1 || trees[root] != tree {
		return nil, templateError(0, 0, "define and block are not allowed")
	}
	if _, err := (&checker{tree}).list(tree.Root, 0, 0); err != nil {
		return nil, err
	}
	return tree, nil
}

// checker walks a tree: it allows what is listed and nothing else.
type checker struct{ tree *parse.Tree }

// list checks l and gives the number of its nodes, all loops run once.
func (c *checker) list(l *parse.ListNode, ranges, depth int) (nodes int, err error) {
	if l == nil {
		return 0, nil
	}
	for _, n := range l.Nodes {
		count, err := c.node(n, ranges, depth+1)
		if err != nil {
			return 0, err
		}
		nodes += count
	}
	return nodes, nil
}

func (c *checker) node(n parse.Node, ranges, depth int) (nodes int, err error) {
	if depth > maxNesting {
		return 0, c.refuse(n, "the template is nested too deeply")
	}
	switch n := n.(type) {
	case *parse.TextNode, *parse.IdentifierNode, *parse.DotNode, *parse.NilNode, *parse.FieldNode,
		*parse.VariableNode, *parse.StringNode, *parse.NumberNode, *parse.BoolNode:
		return 1, nil
	case *parse.ChainNode:
		return c.node(n.Node, ranges, depth+1)
	case *parse.ActionNode:
		nodes, err = c.pipe(n.Pipe, depth)
		if len(n.Pipe.Decl) == 0 {
			n.Pipe.Cmds = append(n.Pipe.Cmds, c.call(n.Pos, emitName))
		}
		return nodes, err
	case *parse.PipeNode:
		return c.pipe(n, depth)
	case *parse.IfNode:
		return c.branch(&n.BranchNode, ranges, depth)
	case *parse.WithNode:
		return c.branch(&n.BranchNode, ranges, depth)
	case *parse.RangeNode:
		if ranges == maxRanges {
			return 0, c.refuse(n, fmt.Sprintf("range is nested more than %d deep", maxRanges))
		}
		if !overField(n.Pipe) {
			return 0, c.refuse(n, "range goes over a field of the data only")
		}
		nodes, err = c.branch(&n.BranchNode, ranges+1, depth)
		count := &parse.NumberNode{NodeType: parse.NodeNumber, Pos: n.Pos, IsInt: true, Int64: int64(nodes)}
		pipe := &parse.PipeNode{NodeType: parse.NodePipe, Pos: n.Pos, Line: n.Line, Cmds: []*parse.CommandNode{c.call(n.Pos, tickName, count)}}
		tick := &parse.ActionNode{NodeType: parse.NodeAction, Pos: n.Pos, Line: n.Line, Pipe: pipe}
		n.List.Nodes = slices.Insert(n.List.Nodes, 0, parse.Node(tick))
		return nodes, err
	}
	return 0, c.refuse(n, "only if, with, range and the listed functions are allowed")
}

func (c *checker) branch(b *parse.BranchNode, ranges, depth int) (nodes int, err error) {
	pipe, err := c.pipe(b.Pipe, depth)
	if err != nil {
		return 0, err
	}
	then, err := c.list(b.List, ranges, depth)
	if err != nil {
		return 0, err
	}
	other, err := c.list(b.ElseList, ranges, depth)
	return 1 + pipe + then + other, err
}

func (c *checker) pipe(p *parse.PipeNode, depth int) (nodes int, err error) {
	if p.IsAssign { // in a loop it would double a string each time
		return 0, c.refuse(p, "a variable is set once, with :=")
	}
	for _, cmd := range p.Cmds {
		for _, arg := range cmd.Args {
			count, err := c.node(arg, 0, depth+1)
			if err != nil {
				return 0, err
			}
			nodes += count
		}
	}
	return nodes, nil
}

// overField reports whether p is .a.b or $x.a and nothing more: then it is data,
// never a number that the template makes.
func overField(p *parse.PipeNode) bool {
	if len(p.Cmds) != 1 || len(p.Cmds[0].Args) != 1 {
		return false
	}
	switch n := p.Cmds[0].Args[0].(type) {
	case *parse.FieldNode:
		return true
	case *parse.VariableNode:
		return len(n.Ident) > 1
	}
	return false
}

// call makes a command that calls one of the functions that templates can't name.
func (c *checker) call(pos parse.Pos, name string, args ...parse.Node) *parse.CommandNode {
	id := parse.NewIdentifier(name).SetPos(pos).SetTree(c.tree)
	return &parse.CommandNode{NodeType: parse.NodeCommand, Pos: pos, Args: append([]parse.Node{id}, args...)}
}

func (c *checker) refuse(n parse.Node, cause string) error {
	where, _ := c.tree.ErrorContext(n)
	line, col := 0, 0
	_, _ = fmt.Sscanf(where, root+":%d:%d", &line, &col) // its form is text/template's; else no place is told
	return templateError(line, col+1, cause)
}

// templateData copies v for a template: nothing in the copy has a method, and
// numbers are digits, so that no range counts up to one.
func templateData(v any) (_ any, err error) {
	switch v := v.(type) {
	case nil, string, bool:
		return v, nil
	case json.Number:
		return number(v), nil
	case map[string]any:
		m := make(map[string]any, len(v))
		for key, e := range v {
			if m[key], err = templateData(e); err != nil {
				return nil, err
			}
		}
		return m, nil
	case []any:
		l := make([]any, len(v))
		for i, e := range v {
			if l[i], err = templateData(e); err != nil {
				return nil, err
			}
		}
		return l, nil
	}
	return nil, invalid("secretPath", "the data is not JSON", "check what secretPath holds")
}

// number is a JSON number in a template.
type number string

// limited takes maxOutput bytes.
type limited struct{ data []byte }

func (l *limited) Write(b []byte) (int, error) {
	if len(l.data)+len(b) > maxOutput {
		return 0, fault(fmt.Sprintf("the template writes more than %d bytes", maxOutput))
	}
	l.data = append(l.data, b...)
	return len(b), nil
}

// fault is an error of ours within a template: its text holds no value.
type fault string

func (f fault) Error() string { return string(f) }

var (
	quotation  = regexp.MustCompile(`"([^"]+)"`)
	parsePlace = regexp.MustCompile(`^template: ` + root + `:(\d+): (?s:(.*))$`)
	execPlace  = regexp.MustCompile(`^template: ` + root + `:(\d+):(\d+): `)
)

// parseError keeps the parser's text, which quotes the template and no data. same
// reports whether a beginning of the template gives the same error.
func parseError(text string, err error, same func(begin string) bool) error {
	line, cause := 0, "the template can't be parsed"
	if m := parsePlace.FindStringSubmatch(err.Error()); m != nil {
		_, _ = fmt.Sscan(m[1], &line)
		cause = strings.Map(func(r rune) rune {
			if unicode.IsPrint(r) {
				return r
			}
			return '?'
		}, m[2])
		if runes := []rune(cause); len(runes) > 200 {
			cause = string(runes[:200]) + "…"
		}
	}
	if cause == "unexpected EOF" {
		return templateError(line, 0, "the template ends within an if, with or range: an {{end}} is missing")
	}
	return templateError(line, column(text, line, cause, same), strings.Replace(cause, " at "+root+":", " in line ", 1))
}

// columnWork bounds the bytes that are parsed again to find a column.
const columnWork = 1 << 20

// column finds where in its line a parse error is, which the parser does not tell:
// what it stumbles over is the last that the shortest beginning with the same
// error holds. 0: it can't be told, or not cheaply.
func column(text string, line int, cause string, same func(begin string) bool) int {
	lines := strings.SplitAfter(text, "\n")
	if line < 1 || line > len(lines) {
		return 0
	}
	start := len(strings.Join(lines[:line-1], ""))
	end, work := 0, columnWork
	for i := start + len(strings.TrimSuffix(lines[line-1], "\n")); i > start && same(text[:i]); i-- {
		end = i
		if work -= i; work < 0 {
			return 0
		}
	}
	if end == 0 {
		return 0
	}
	read := text[start:end]
	action, closed := strings.CutSuffix(read, "}}")
	if quoted := quotation.FindStringSubmatch(cause); quoted != nil && strings.HasSuffix(action, quoted[1]) {
		return len(action) - len(quoted[1]) + 1
	}
	if closed || cause == "unclosed action" {
		return strings.LastIndex(read, "{{") + 1
	}
	return len(read) // the last byte
}

// execError says what went wrong and where. The texts of text/template show
// values: only the place is taken from them, and the kind of the fault.
func execError(err error, data map[string]any) error {
	line, col := 0, 0
	if m := execPlace.FindStringSubmatch(err.Error()); m != nil {
		_, _ = fmt.Sscan(m[1]+" "+m[2], &line, &col)
	}
	cause := "this can't be evaluated with the data as it is"
	var own fault
	switch {
	case errors.As(err, &own):
		cause = own.Error()
	case strings.Contains(err.Error(), ">: map has no entry for key "):
		cause = "there is no entry of this name; the data has " + keyNames(data)
	case strings.Contains(err.Error(), ">: range can't iterate over "):
		cause = "range needs a list or a map"
	}
	return invalid("template", place(line, col+1)+cause, "correct the template, or ask with get for what may be missing")
}

// templateError is what is wrong with a template itself.
func templateError(line, col int, cause string) error {
	return invalid("template", place(line, col)+cause, "a template has .Data, .Lease.Expires, if, with, range over a field, "+functionNames())
}

// place begins an error text; a line or column of 0 is not known.
func place(line, col int) string {
	switch {
	case line == 0:
		return ""
	case col == 0:
		return fmt.Sprintf("line %d: ", line)
	}
	return fmt.Sprintf("line %d, column %d: ", line, col)
}
