package provider

import (
	"bytes"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// The limits of AWS for a session, from the references of STS (AssumeRole) and IAM.
const (
	maxPolicy   = 2048 // characters of a session policy
	maxRoleARN  = 2048
	maxRoleName = 64
	maxTags     = 50
	maxTagKey   = 128
	maxTagValue = 256
)

var (
	regionName = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]{2,12}){1,3}-[1-9][0-9]?$`)
	roleARN    = regexp.MustCompile(`^arn:(aws[a-z-]*):iam::[0-9]{12}:role/(?:[\w+=,.@-]+/)*([\w+=,.@-]+)$`)
	tagText    = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$`)
	// literal is what means nothing but itself in an IAM policy: no wildcard, no
	// part of a policy variable.
	literal = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
)

// partitions are AWS's by how the names of their regions begin; any other region
// is of "aws". From the endpoint rules of AWS's SDKs.
var partitions = []struct{ prefix, name string }{
	{"cn-", "aws-cn"},
	{"us-gov-", "aws-us-gov"},
	{"us-iso-", "aws-iso"},
	{"us-isob-", "aws-iso-b"},
	{"eu-isoe-", "aws-iso-e"},
	{"us-isof-", "aws-iso-f"},
	{"eusc-", "aws-eusc"},
}

// partition returns the AWS partition of a region: the second part of the ARNs of
// all that is in it.
func partition(region string) string {
	for _, p := range partitions {
		if strings.HasPrefix(region, p.prefix) {
			return p.name
		}
	}
	return "aws"
}

// IsRegion reports whether text has the form of an AWS region's name, and so can
// be a part of a host name. Whether there is such a region only AWS knows. It may
// be called from many goroutines at once.
func IsRegion(text string) bool { return regionName.MatchString(text) }

// RoleFault says why arn can't be the role of a session that STS in region (empty:
// any) is asked for, and the way out: it is no IAM role's, or another partition's.
// Both are "" when it can. It may be called from many goroutines at once.
func RoleFault(arn, region string) (cause, remedy string) {
	m := roleARN.FindStringSubmatch(arn)
	switch {
	case m == nil || len(arn) > maxRoleARN:
		return quote(arn) + " is no ARN of an IAM role", "write it like " + roleARNExample
	case len(m[2]) > maxRoleName:
		return "has the role name " + quote(m[2]) + " of " + strconv.Itoa(len(m[2])) + " characters, and IAM's have at most " + strconv.Itoa(maxRoleName), "shorten it"
	case region != "" && m[1] != partition(region):
		return "is of partition " + m[1] + ", and region " + brief(region) + " is of " + partition(region), "name a role and a region of one partition"
	}
	return "", ""
}

// Session is a session of an IAM role as its author wrote it, in an object of an
// SPC or in a rule of the tenant bindings. Placeholders may stand in RoleARN, in
// the values of Tags and in the texts of Policy.
type Session struct {
	RoleARN string            // the role to assume; empty: none
	Policy  *yaml.Node        // narrows the role, as ReadPolicy answers it; nil: none
	Tags    map[string]string // nil: none
	Region  string            // empty: not named
}

// ReadPolicy reads an IAM policy, written as YAML or as a text that holds YAML or
// JSON. The error is of class Invalid and blames sessionPolicy; what depends on the
// placeholders' values is for Fill to find. It may be called from many goroutines
// at once.
func ReadPolicy(written *yaml.Node) (*yaml.Node, *Error) {
	no := func(cause, remedy string) (*yaml.Node, *Error) {
		return nil, &Error{Class: Invalid, Field: "sessionPolicy", Cause: cause, Remedy: remedy}
	}
	const example = `write it like sessionPolicy: {Version: "2012-10-17", Statement: [...]}`
	if textLength(written) > 4*maxPolicy { // before all work
		return no("is longer than 8 KiB", "write an IAM policy")
	}
	read, nodes := written, 0
	err := checkYAML(written, &nodes)
	if err == nil && written.Kind == yaml.ScalarNode {
		read, err = loadYAML(written.Value)
	}
	switch {
	case err != nil:
		return no("can't be read as YAML or JSON: "+err.Error(), "write an IAM policy")
	case read == nil || read.Kind != yaml.MappingNode:
		return no("is no IAM policy", example)
	}
	for i := 0; i < len(read.Content); i += 2 {
		if read.Content[i].Value == "Statement" {
			return read, nil
		}
	}
	return no("has no Statement", example)
}

// textLength is about how long the text of n is at least, without comments.
func textLength(n *yaml.Node) int {
	length := len(n.Value) + 1
	for _, child := range n.Content {
		length += textLength(child)
	}
	return length
}

// Placeholders returns what in text has the form of a placeholder, known or not. It
// may be called from many goroutines at once.
func Placeholders(text string) []string { return placeholder.FindAllString(text, -1) }

// Fill makes s into what AWS is asked for and compares that with what AWS takes.
// replace fills in the placeholders of one text and reports those that it does not
// know; report is told of every fault, by the field's name in SPCs and in rules. When
// one was told the answer is of no use. It may be called from many goroutines at
// once where replace and report may.
func (s Session) Fill(replace func(text string, report func(cause, remedy string)) string, report func(field, cause, remedy string)) AWS {
	f, region := filler{replace, report}, s.Region
	if region != "" && !IsRegion(region) {
		report("region", quote(region)+" is no AWS region", "write it like eu-central-1")
		region = ""
	}
	return AWS{RoleARN: f.role(s.RoleARN, region), SessionPolicy: f.policy(s.Policy), SessionTags: f.tags(s.Tags), Region: region}
}

// filler fills in the placeholders of one session.
type filler struct {
	replace func(text string, report func(cause, remedy string)) string
	report  func(field, cause, remedy string)
}

func (f filler) text(field, text string) string {
	return f.replace(text, func(cause, remedy string) { f.report(field, cause, remedy) })
}

func (f filler) role(written, region string) string {
	const field = "roleArn"
	arn := f.text(field, written)
	if cause, remedy := RoleFault(arn, region); arn != "" && cause != "" {
		f.report(field, cause, remedy)
	}
	return arn
}

// value fills in placeholders whose values mean nothing to IAM but themselves.
func (f filler) value(field, text string) string {
	if !Printable(text) {
		f.report(field, "has control characters", "remove them")
	}
	for _, found := range Placeholders(text) {
		if value := f.replace(found, func(string, string) {}); value != found && !literal.MatchString(value) {
			f.report(field, "would get a "+found+" that means more to IAM than itself", "use names of letters, digits and . _ -")
			return ""
		}
	}
	return f.text(field, text)
}

// policy writes a policy as JSON with sorted keys and no spaces, as AWS counts its
// length, so that equal policies are equal.
func (f filler) policy(read *yaml.Node) string {
	const field = "sessionPolicy"
	if read == nil {
		return ""
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // an escaped < takes six characters of the few that there are
	if err := encoder.Encode(f.policyPart(read)); err != nil {
		f.report(field, "has a number that JSON can't carry", "correct it")
	}
	policy := strings.TrimSpace(text.String())
	if n := utf8.RuneCountInString(policy); n > maxPolicy {
		f.report(field, "has "+strconv.Itoa(n)+" characters as JSON with all names filled in, "+strconv.Itoa(n-maxPolicy)+" more than AWS takes", "shorten it")
	}
	return policy
}

// policyPart is a part of a policy as JSON has it. Placeholders are replaced in
// values that are text, and nowhere else: the policy's structure is the author's.
func (f filler) policyPart(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		part := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			part[n.Content[i].Value] = f.policyPart(n.Content[i+1])
		}
		return part
	case yaml.SequenceNode:
		part := make([]any, len(n.Content))
		for i, child := range n.Content {
			part[i] = f.policyPart(child)
		}
		return part
	}
	var value any
	switch n.ShortTag() {
	case "!!null":
		f.report("sessionPolicy", "has a key without a value", "remove it, or give it a value")
	case "!!bool", "!!int", "!!float":
		_ = n.Decode(&value) // a scalar of this type always decodes
	default: // YAML takes Version: 2012-10-17 for a date
		value = f.value("sessionPolicy", n.Value)
	}
	return value
}

// tags fills in the values of tags.
func (f filler) tags(written map[string]string) map[string]string {
	const field = "sessionTags"
	if written == nil {
		return nil
	}
	if len(written) > maxTags {
		f.report(field, "are "+strconv.Itoa(len(written))+", more than the "+strconv.Itoa(maxTags)+" that AWS takes", "leave some out")
	}
	tags, folded := map[string]string{}, map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(written)) {
		lower, value := strings.ToLower(key), f.value(field, written[key])
		switch {
		case key == "" || utf8.RuneCountInString(key) > maxTagKey || utf8.RuneCountInString(value) > maxTagValue:
			f.report(field, "has a key without or over 128 characters, or a value over 256", "shorten it")
		case !tagText.MatchString(key) || !tagText.MatchString(value):
			f.report(field, "has characters that AWS does not take in tags", "use letters, digits, spaces and _ . : / = + - @")
		case strings.HasPrefix(lower, "aws:"):
			f.report(field, "has a key that begins with aws:, which is AWS's own", "rename it")
		case folded[lower]:
			f.report(field, "has keys that differ in case only", "rename one: to AWS they are the same")
		}
		tags[key], folded[lower] = value, true
	}
	return tags
}
