package provider

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// AgentIdentity is the third identity at AWS: the pod's service account token,
// shown to the agent of EKS Pod Identity on the node.
const AgentIdentity = "pod-identity"

// agentAudience is that of the tokens which the agent takes.
const agentAudience = "pods.eks.amazonaws.com"

// The limits of AWS, from the references of STS (AssumeRole) and IAM.
const (
	minSession     = 15 * time.Minute
	maxSession     = 12 * time.Hour
	maxChained     = time.Hour // for a role that is assumed from another session
	briefSession   = 30 * time.Minute
	maxPolicy      = 2048 // characters of a session policy
	maxRoleARN     = 2048
	maxTags        = 50
	maxTagKey      = 128
	maxTagValue    = 256
	postgresPort   = 5432
	mysqlPort      = 3306
	roleARNExample = "arn:aws:iam::123456789012:role/orders"
)

var (
	regionName = regexp.MustCompile(`^[a-z]{2,4}(-[a-z]{2,12}){1,3}-[1-9][0-9]?$`)
	roleARN    = regexp.MustCompile(`^arn:(aws[a-z-]*):iam::[0-9]{12}:role/([\w+=,.@-]+/)*[\w+=,.@-]{1,64}$`)
	tagText    = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$`)
	hostName   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	rdsHost    = regexp.MustCompile(`\.([a-z0-9-]+)\.rds\.amazonaws\.com(\.cn)?$`)
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

// Partition returns the AWS partition of a region: the second part of the ARNs of
// all that is in it. It may be called from many goroutines at once.
func Partition(region string) string {
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

// PartitionOfRole returns the partition in the ARN of an IAM role, and "" for any
// other text. It may be called from many goroutines at once.
func PartitionOfRole(arn string) string {
	if m := roleARN.FindStringSubmatch(arn); m != nil && len(arn) <= maxRoleARN {
		return m[1]
	}
	return ""
}

// awsRead takes the question to AWS out of the fields.
func (e *entry) awsRead(source string, c Connection) Read {
	a := AWS{
		Identity:      cmp.Or(e.oneOf("identity", identities), PodIdentity),
		RoleARN:       e.replaced("roleArn"),
		SessionPolicy: e.sessionPolicy(),
		SessionTags:   e.sessionTags(),
		Region:        e.text("region"),
	}
	if a.Region != "" && !IsRegion(a.Region) {
		e.fault("region", quote(a.Region)+" is no AWS region", "write it like eu-central-1")
	}
	if source == rdsSource {
		e.meaningless("source "+source+", whose tokens live 15m", "ttl")
		e.database(&a, c)
	} else {
		e.meaningless("source "+source, "connection.user")
		a.TTL = e.ttl(a.Identity)
	}
	e.checkRole(a)
	return Read{Source: source, Login: Login{Audience: e.awsAudience(a.Identity)}, AWS: a}
}

// awsAudience is that of the token that AWS is shown; empty: none is.
func (e *entry) awsAudience(identity string) string {
	audience := e.text("audience")
	switch identity {
	case AgentIdentity:
		return cmp.Or(audience, agentAudience)
	case PodIdentity:
		return cmp.Or(audience, STSAudience)
	}
	e.meaningless("identity: node", "audience")
	return ""
}

// checkRole compares identity, role and what narrows the role.
func (e *entry) checkRole(a AWS) {
	partition := PartitionOfRole(a.RoleARN)
	switch {
	case a.Identity == NodeIdentity:
		for _, name := range []string{"roleArn", "sessionPolicy", "sessionTags"} {
			if e.node(name) != nil {
				e.fault(name, "is set, but with identity: node the cluster's operator alone says it", "leave it out, or use identity: pod")
			}
		}
	case a.RoleARN == "" && a.Identity == PodIdentity:
		e.fault("roleArn", "is missing", "set the IAM role to assume, like "+roleARNExample)
	case a.RoleARN == "":
		for _, name := range []string{"sessionPolicy", "sessionTags", "ttl"} {
			if e.node(name) != nil {
				e.fault(name, "has no effect without roleArn: the agent's session is taken as it is", "set roleArn, or leave it out")
			}
		}
	case partition == "":
		e.fault("roleArn", quote(a.RoleARN)+" is no ARN of an IAM role", "write it like "+roleARNExample)
	case a.Region != "" && partition != Partition(a.Region):
		e.fault("roleArn", "is of partition "+partition+", and region "+brief(a.Region)+" is of "+Partition(a.Region), "name a role and a region of one partition")
	case a.Identity == PodIdentity && a.SessionTags != nil:
		e.fault("sessionTags", "can't be sent with the pod's web identity token: AWS takes the tags in the token itself", "leave it out, or use identity: pod-identity")
	}
}

// ttl is the life that a session is asked for; 0: the default.
func (e *entry) ttl(identity string) time.Duration {
	ttl := e.duration("ttl", minSession)
	switch {
	case identity != PodIdentity && ttl > maxChained:
		e.fault("ttl", "is longer than 1h, the most that AWS gives a role that is assumed from another session", "set 1h, or use identity: pod")
	case ttl > maxSession:
		e.fault("ttl", "is longer than 12h, the most that AWS gives", "choose a shorter one")
	case ttl >= minSession && ttl < briefSession:
		e.warn("object %s: ttl is under 30m: AWS's SDKs look for new credentials 15m before the end, and wait for them at 10m", quote(e.name))
	}
	return ttl
}

// sessionPolicy reads an IAM policy, given as YAML or as a text that holds YAML or
// JSON, into compact JSON with sorted keys, so that equal policies are equal.
func (e *entry) sessionPolicy() string {
	const name = "sessionPolicy"
	n := e.node(name)
	if n == nil {
		return ""
	}
	n, err := e.policy(n)
	if err != nil {
		e.fault(name, err.Error(), "write an IAM policy")
		return ""
	}
	if n == nil || n.Kind != yaml.MappingNode {
		e.fault(name, "is no IAM policy", `write it like sessionPolicy: {Version: "2012-10-17", Statement: [...]}`)
		return ""
	}
	document, _ := e.policyPart(n).(map[string]any)
	if _, ok := document["Statement"]; !ok {
		e.fault(name, "has no Statement", `write it like sessionPolicy: {Version: "2012-10-17", Statement: [...]}`)
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // an escaped < takes six characters of the few that there are
	if err := encoder.Encode(document); err != nil {
		e.fault(name, "has a number that JSON can't carry", "correct it")
	}
	policy := strings.TrimSpace(text.String())
	if n := len([]rune(policy)); n > maxPolicy {
		e.fault(name, "has "+strconv.Itoa(n)+" characters as JSON, "+strconv.Itoa(n-maxPolicy)+" more than AWS takes", "shorten it")
	}
	return policy
}

// policy reads a policy once, however many objects and tenants have it. Its text
// may have four times the characters that AWS takes.
func (p *parser) policy(written *yaml.Node) (read *yaml.Node, err error) {
	if read, known := p.policies[written]; known {
		return read, nil
	}
	if textLength(written) > 4*maxPolicy {
		return nil, errors.New("is longer than 8 KiB")
	}
	read = written
	if written.Kind == yaml.ScalarNode {
		if read, err = loadYAML(written.Value); err != nil {
			return nil, fmt.Errorf("can't be read as YAML or JSON: %w", err)
		}
	}
	p.policies[written] = read
	return read, nil
}

// textLength is about how long the text of n is at least, without comments.
func textLength(n *yaml.Node) int {
	length := len(n.Value) + 1
	for _, child := range n.Content {
		length += textLength(child)
	}
	return length
}

// policyPart is a part of a policy as JSON has it. Placeholders are replaced in
// values that are text, and nowhere else: the policy's structure is the author's.
func (e *entry) policyPart(n *yaml.Node) any {
	switch n.Kind {
	case yaml.MappingNode:
		part := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			part[n.Content[i].Value] = e.policyPart(n.Content[i+1])
		}
		return part
	case yaml.SequenceNode:
		part := make([]any, len(n.Content))
		for i, child := range n.Content {
			part[i] = e.policyPart(child)
		}
		return part
	}
	var value any
	switch n.ShortTag() {
	case "!!null":
		e.fault("sessionPolicy", "has a key without a value", "remove it, or give it a value")
	case "!!bool", "!!int", "!!float":
		_ = n.Decode(&value) // a scalar of this type always decodes
	default: // YAML takes Version: 2012-10-17 for a date
		value = e.replacedLiterally("sessionPolicy", n.Value)
	}
	return value
}

// replacedLiterally fills in placeholders whose values mean nothing to IAM but
// themselves.
func (e *entry) replacedLiterally(name, text string) string {
	if !printable(text) {
		e.fault(name, "has control characters", "remove them")
	}
	report := func(cause, remedy string) { e.fault(name, cause, remedy) }
	for _, found := range placeholder.FindAllString(text, -1) {
		if value := e.placeholders.Replace(found); value != found && !literal.MatchString(value) {
			report("would get a "+found+" that means more to IAM than itself", "use names of letters, digits and . _ -")
			return ""
		}
	}
	return e.replace(text, report)
}

// sessionTags reads the tags of a session; nil without.
func (e *entry) sessionTags() map[string]string {
	const name = "sessionTags"
	n := e.node(name)
	if n == nil {
		return nil
	}
	var given map[string]string
	if n.Kind != yaml.MappingNode || n.Decode(&given) != nil || len(given) == 0 || len(given) > maxTags {
		e.fault(name, "is no mapping of 1 to 50 plain values", "write it like sessionTags: {team: orders}")
		return nil
	}
	tags, folded := map[string]string{}, map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		lower, value := strings.ToLower(key), e.replacedLiterally(name, given[key])
		switch {
		case key == "" || len([]rune(key)) > maxTagKey || len([]rune(value)) > maxTagValue:
			e.fault(name, "has a key without or over 128 characters, or a value over 256", "shorten it")
		case !tagText.MatchString(key) || !tagText.MatchString(value):
			e.fault(name, "has characters that AWS does not take in tags", "use letters, digits, spaces and _ . : / = + - @")
		case strings.HasPrefix(lower, "aws:"):
			e.fault(name, "has a key that begins with aws:, which is AWS's own", "rename it")
		case folded[lower]:
			e.fault(name, "has keys that differ in case only", "rename one: to AWS they are the same")
		}
		tags[key], folded[lower] = value, true
	}
	return tags
}

// database reads what an rds-iam token is good for: one user at one endpoint.
func (e *entry) database(a *AWS, c Connection) {
	port := c.Port
	if port == 0 {
		switch strings.ToLower(e.text("format")) {
		case "pg-service", "pgpass", "uri":
			port = postgresPort
		case "my-cnf":
			port = mysqlPort
		default:
			e.fault("connection.port", "is missing, and the token is good for one port", "write it like port: 5432")
		}
	}
	if c.User == "" {
		e.fault("connection.user", "is missing", "set the database user that has rds_iam (PostgreSQL) or AWSAuthenticationPlugin (MySQL)")
	}
	if !hostName.MatchString(c.Host) {
		e.fault("connection.host", "is missing, or not one host name", "set the endpoint of the database, like orders.abc123.eu-central-1.rds.amazonaws.com")
	}
	a.Endpoint, a.User = net.JoinHostPort(strings.ToLower(c.Host), strconv.Itoa(port)), c.User
	if m := rdsHost.FindStringSubmatch(strings.ToLower(c.Host)); m != nil && IsRegion(m[1]) {
		if a.Region != "" && a.Region != m[1] {
			e.fault("region", brief(a.Region)+" is not that of connection.host", "leave it out")
		}
		a.Region = m[1]
	}
}
